"""What the GPU can do at most, measured through PyTorch: copy bandwidth, bf16 products, host links.

Figures of our own kernels are put beside these; take them in the same run, since cards differ.
Usage: ceilings.py --json FILE
"""

import argparse
import json
import statistics

import torch

GIB = 1 << 30


def median_seconds(work, repeats=10):
    """Median time of work() between device events, after two calls that do not count."""
    times = []
    for i in range(repeats + 2):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        stop.synchronize()
        if i >= 2:
            times.append(start.elapsed_time(stop) * 1e-3)
    return statistics.median(times)


def copy_gbps():
    """Device to device, bytes read plus bytes written."""
    source = torch.randint(0, 255, (2 * GIB,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / median_seconds(lambda: target.copy_(source)) * 1e-9


def gemm_tflops(rows, outputs, inputs):
    """cuBLAS on random bf16 operands: zeros run faster than data."""
    a = torch.randn(rows, inputs, dtype=torch.bfloat16, device="cuda")
    b = torch.randn(outputs, inputs, dtype=torch.bfloat16, device="cuda")
    out = torch.empty(rows, outputs, dtype=torch.bfloat16, device="cuda")
    seconds = median_seconds(lambda: torch.mm(a, b.t(), out=out))
    return 2 * rows * outputs * inputs / seconds * 1e-12


def host_gbps(to_device):
    pinned = torch.empty(GIB // 4, dtype=torch.uint8).pin_memory()
    device = torch.empty(GIB // 4, dtype=torch.uint8, device="cuda")
    source, target = (pinned, device) if to_device else (device, pinned)
    return pinned.numel() / median_seconds(lambda: target.copy_(source, non_blocking=True)) * 1e-9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", required=True)
    args = parser.parse_args()
    properties = torch.cuda.get_device_properties(0)
    result = {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "copy_gbps": copy_gbps(),
        "gemm_bf16_tflops": gemm_tflops(8192, 8192, 8192),
        # What a prefill step of the 340M and 1.3B models can hope for: their widest product.
        "gemm_340m_tflops": gemm_tflops(8192, 5632, 1024),
        "gemm_1b3_tflops": gemm_tflops(8192, 11264, 2048),
        "to_device_gbps": host_gbps(to_device=True),
        "to_host_gbps": host_gbps(to_device=False),
    }
    for name, value in result.items():
        print(f"{name:20} {value:.1f}" if isinstance(value, float) else f"{name:20} {value}")
    with open(args.json, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
