"""Puts the figures of tests/device.sh together: one table for people, one JSON file for the record.

Usage: report.py bench FILE                           what one osdn-tools bench found, in a few lines
       report.py table --parts DIR --steps FILE --json FILE
"""

import argparse
import json
import pathlib
import sys

MEGA = 1e6
GIGA = 1e9


def median(values):
    values = sorted(values)
    return values[len(values) // 2] if values else 0


def number(value, digits=1):
    return "-" if value is None else f"{value:.{digits}f}"


def ratio(a, b):
    return a / b if a and b else None


def load(path):
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}


def bench_lines(bench, ceilings):
    """Decode and prefill of one model beside the ceilings of the same run."""
    copy = ceilings.get("copy_gbps")
    peak = ceilings.get("gemm_bf16_tflops")
    yield f"{bench['model']}, {bench['dtype']}, on {bench['backend']}"
    yield f"  load {bench['load_seconds']:.2f} s, first token after {bench['first_token_seconds']:.2f} s"
    yield "  decode   batch  position   tokens/s   ms/step     GB/s  of copy  vs first position"
    for case in bench["decode"]:
        step = median(case["seconds_per_step"])
        bandwidth = case["bytes_per_token"] * case["batch"] / step / GIGA
        yield (
            f"          {case['batch']:6}{case['position']:10}{case['tokens_per_s']:11.1f}"
            f"{step * 1e3:10.3f}{bandwidth:9.0f}{number(ratio(bandwidth, copy), 3):>9}"
            f"{case['latency_vs_first_position']:11.3f}"
        )
    yield from op_lines(bench)
    if bench["prefill"]:
        yield "  prefill  prompt   tokens/s    TTFT ms  TFLOP/s  of peak   (products with weights)"
    for case in bench["prefill"]:
        seconds = median(case["seconds"])
        flops = bench.get("layer_flops_per_token", 0) * case["prompt"] / seconds * 1e-12
        yield (
            f"          {case['prompt']:7}{case['tokens_per_s']:11.0f}{seconds * 1e3:11.2f}"
            f"{number(flops or None):>9}{number(ratio(flops, peak), 3):>9}"
        )


def op_lines(bench):
    """Where a decode step's time goes, each op waited for: the smallest batch and the largest."""
    timed = [case for case in bench["decode"] if case.get("ops")]
    batches = {case["batch"]: case for case in reversed(timed)}
    for batch in sorted({min(batches, default=0), max(batches, default=0)} & set(batches)):
        ops = batches[batch]["ops"][:5]
        shares = ", ".join(f"{op['op']} {op['share']:.0%}" for op in ops)
        yield f"           batch {batch} by op: {shares}"


# Weights of one layer's products, by the reference shapes of models/configs.
def layer_flops_per_token(name):
    shapes = {"osdn-340m": (24, 1024, 8, 2816), "osdn-1.3b": (24, 2048, 16, 5632)}
    if name not in shapes:
        return 0
    layers, hidden, heads, intermediate = shapes[name]
    return 2 * layers * (4 * hidden * hidden + 2 * heads * hidden + 3 * hidden * intermediate)


def add_flops(bench):
    if bench:
        bench["layer_flops_per_token"] = layer_flops_per_token(bench["model"])
    return bench


def fla_lines(mixer, fla):
    """Our mixer beside fla's op, microseconds: replayed graphs where there are any."""
    cases = fla.get("cases", {})
    names = [key[: -len(".osdn.us")] for key in mixer if key.endswith(".osdn.us")]
    names += [key[: -len(".us")] for key in mixer if key.startswith("decode.") and key.endswith(".us")]
    names += [name for name in cases if name not in names and name.split(".")[0] in ("chunk", "decode")]
    if names:
        yield "mixer, us                     osdn    delta  osdn/delta      fla  fla graph  fla/osdn"
    for name in names:
        ours = mixer.get(f"{name}.osdn.us", mixer.get(f"{name}.us"))
        delta = mixer.get(f"{name}.delta.us")
        case = cases.get(name, {})
        if "error" in case:
            yield f"  {name}: fla failed: {case['error'][:80]}"
        theirs = case.get("graph_us", case.get("us"))
        yield (
            f"  {name:24}{number(ours):>9}{number(delta):>9}{number(ratio(ours, delta), 3):>12}"
            f"{number(case.get('us')):>9}{number(case.get('graph_us')):>11}"
            f"{number(ratio(theirs, ours), 2):>10}"
        )


def peer_lines(fla, bench):
    """fla's model of the 340M shape beside ours."""
    decode = {c["batch"]: median(c["seconds_per_step"]) * 1e3 for c in bench.get("decode", [])[::-1]}
    prefill = {c["prompt"]: median(c["seconds"]) * 1e3 for c in bench.get("prefill", [])}
    for name, case in fla.get("cases", {}).items():
        kind, _, size = name.partition(".")
        if kind == "generate":
            theirs, ours = case.get("ms_per_token"), decode.get(int(size[1:]))
        elif kind == "ttft":
            theirs, ours = case.get("ms"), prefill.get(int(size))
        else:
            continue
        if "error" in case:
            yield f"  {name}: {case['error'][:100]}"
            continue
        yield (
            f"  340M {name:16} fla {number(theirs, 2):>9} ms   osdn {number(ours, 3):>9} ms"
            f"   {number(ratio(theirs, ours), 2):>7}x"
        )


def ceiling_lines(ceilings):
    if ceilings:
        yield (
            f"ceilings: copy {ceilings['copy_gbps']:.0f} GB/s, bf16 product "
            f"{ceilings['gemm_bf16_tflops']:.0f} TFLOP/s (340M's widest {ceilings['gemm_340m_tflops']:.0f},"
            f" 1.3B's {ceilings['gemm_1b3_tflops']:.0f}), host to device"
            f" {ceilings['to_device_gbps']:.1f}, device to host {ceilings['to_host_gbps']:.1f} GB/s"
        )


def parity_lines(parity):
    for check in parity.get("checks", []):
        figures = {k: v for k, v in check.items() if k not in ("name", "passed")}
        text = "  ".join(
            f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {str(v)[:90]}" for k, v in figures.items()
        )
        yield f"  {'ok' if check['passed'] else 'FAIL':5}{check['name']:32} {text}"


def read_steps(path):
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    return [{"name": n, "status": s, "seconds": int(t)} for n, s, t in rows]


def table(args):
    parts = {path.stem: load(path) for path in sorted(args.parts.glob("*.json"))}
    steps = read_steps(args.steps)
    ceilings = parts.get("ceilings", {})
    mixer, fla = parts.get("mixer", {}), parts.get("fla", {})
    benches = {name: add_flops(part) for name, part in parts.items() if name.startswith(("bench_", "mini_"))}
    args.json.write_text(json.dumps({"steps": steps, **parts}, indent=1), "utf-8")

    print("\n==> Table")
    for lines in (
        parity_lines(parts.get("parity", {})),
        parity_lines(parts.get("far", {})),
        ceiling_lines(ceilings),
        *(bench_lines(bench, ceilings) for bench in benches.values() if bench),
        fla_lines(mixer, fla),
        peer_lines(fla, benches.get("bench_340m") or {}),
    ):
        for line in lines:
            print(line)
    for row in steps:
        print(f"{row['status']:28} {row['seconds']:4} s  {row['name']}")
    bad = [r for r in steps if r["status"] != "PASS" and not r["status"].startswith("skipped")]
    print(f"{len(steps) - len(bad)} of {len(steps)} steps passed or skipped")
    return 1 if bad or not steps else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench")
    bench.add_argument("file", type=pathlib.Path)
    whole = commands.add_parser("table")
    for name in ("--parts", "--steps", "--json"):
        whole.add_argument(name, type=pathlib.Path, required=True)
    args = parser.parse_args()
    if args.command == "table":
        return table(args)
    print(*bench_lines(add_flops(load(args.file)), {}), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
