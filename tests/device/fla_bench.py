"""Times flash-linear-attention's delta rule on this GPU: what our mixer and engine are put beside.

Needs PyTorch, Triton and the wheels flash-linear-attention and fla-core on PYTHONPATH. Most of a cold
run is Triton compiling what its autotuner tries, so `--prewarm` first fills Triton's cache, a process
a group of kernels; its autotuning results are not kept, as the processes disturb each other.
Cases run in order of importance until --deadline; the JSON is written after each.
Usage: fla_bench.py --json FILE [--deadline SECONDS] [--only chunk,decode,model]
       fla_bench.py --prewarm [--deadline SECONDS]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

CHUNK_SHAPES = [(1, 8192), (8, 2048), (32, 512)]  # sequences x tokens
# (heads, head size), the ones the bars are about first.
CHUNK_HEADS = [(16, 128), (8, 128), (8, 64), (8, 256), (16, 64), (16, 256)]
DECODE_BATCHES = [1, 32, 256]
DECODE_HEADS = [(8, 128), (16, 128)]
# The shape of models/configs/osdn-340m.yaml.
MODEL = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_heads": 8,
    "intermediate_size": 2816,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}


def inputs(batch, tokens, heads, dim):
    """q, k, v, beta as the op takes them: keys and queries of norm 1, beta in (0, 1)."""
    import torch
    from torch.nn import functional as F

    def random(*shape):
        return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")

    shape = (batch, tokens, heads, dim)
    q, k = (F.normalize(random(*shape).float(), dim=-1).bfloat16() for _ in range(2))
    return q, k, random(*shape), random(batch, tokens, heads).sigmoid()


def chunk_case(batch, tokens, heads, dim):
    from fla.ops.delta_rule import chunk_delta_rule

    q, k, v, beta = inputs(batch, tokens, heads, dim)
    return lambda: chunk_delta_rule(
        q, k, v, beta, use_qk_l2norm_in_kernel=False, output_final_state=True
    )


def decode_case(batch, heads, dim):
    import torch
    from fla.ops.delta_rule import fused_recurrent_delta_rule

    q, k, v, beta = inputs(batch, 1, heads, dim)
    state = torch.randn(batch, heads, dim, dim, dtype=torch.float32, device="cuda")
    return lambda: fused_recurrent_delta_rule(
        q, k, v, beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=False
    )


def graph_of(work):
    """The replay of a CUDA graph of work(), or None where it cannot be captured."""
    import torch

    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
    except Exception as error:  # whatever fla or Triton raise; the eager figure stands
        print(f"  no graph: {error}", file=sys.stderr)
        return None
    return graph.replay


def time_op(work):
    """Medians in microseconds, each with a cold L2 (do_bench flushes it)."""
    from triton.testing import do_bench

    work()
    result = {"us": do_bench(work, warmup=25, rep=100, return_mode="median") * 1e3}
    replay = graph_of(work)
    if replay is not None:
        result["graph_us"] = do_bench(replay, warmup=10, rep=100, return_mode="median") * 1e3
    return result


class Peer:
    """fla's DeltaNetForCausalLM with random weights, driven with its own cache."""

    def __init__(self):
        import torch
        from fla.models import DeltaNetConfig, DeltaNetForCausalLM

        torch.manual_seed(1)
        with torch.device("cuda"):
            model = DeltaNetForCausalLM(DeltaNetConfig(**MODEL))
        self.model = model.to(torch.bfloat16).eval()
        self.torch = torch

    def prompt(self, batch, tokens):
        return self.torch.randint(0, MODEL["vocab_size"], (batch, tokens), device="cuda")

    def step(self, ids, cache):
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1), out.past_key_values

    def generate(self, batch, prompt, tokens):
        """Milliseconds a token of greedy decoding after a prompt."""
        ids, cache = self.step(self.prompt(batch, prompt), None)
        for _ in range(8):
            ids, cache = self.step(ids, cache)
        times = []
        for _ in range(3):
            self.torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(tokens):
                ids, cache = self.step(ids, cache)
            self.torch.cuda.synchronize()
            times.append((time.perf_counter() - start) / tokens * 1e3)
        return statistics.median(times)

    def first_token(self, prompt):
        """Milliseconds from the prompt to its next token."""
        times = []
        for _ in range(3):
            ids = self.prompt(1, prompt)
            self.torch.cuda.synchronize()
            start = time.perf_counter()
            self.step(ids, None)[0].cpu()
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)


def model_cases(peer):
    for batch in (1, 64):
        yield f"generate.B{batch}", lambda batch=batch: {"ms_per_token": peer.generate(batch, 128, 48)}
    for prompt in (8192, 131072):
        yield f"ttft.{prompt}", lambda prompt=prompt: {"ms": peer.first_token(prompt)}
    yield "generate.B256", lambda: {"ms_per_token": peer.generate(256, 64, 32)}


def cases(only):
    """(name, function that gives the case's figures), in order of importance."""
    chunk = [
        (f"chunk.{batch}x{tokens}.H{heads}.D{dim}", (batch, tokens, heads, dim))
        for heads, dim in CHUNK_HEADS
        for batch, tokens in CHUNK_SHAPES
    ]
    main, rest = chunk[: 2 * len(CHUNK_SHAPES)], chunk[2 * len(CHUNK_SHAPES) :]
    if "chunk" in only:
        for name, shape in main:
            yield name, lambda shape=shape: time_op(chunk_case(*shape))
    if "decode" in only:
        for heads, dim in DECODE_HEADS:
            for batch in DECODE_BATCHES:
                yield (
                    f"decode.B{batch}.H{heads}.D{dim}",
                    lambda case=(batch, heads, dim): time_op(decode_case(*case)),
                )
    if "model" in only:
        peer = Peer()
        yield from model_cases(peer)
        del peer
    if "chunk" in only:
        for name, shape in rest:
            yield name, lambda shape=shape: time_op(chunk_case(*shape))


def run(args):
    import fla
    import torch
    import triton

    result = {
        "device": torch.cuda.get_device_name(0),
        "fla": fla.__version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cases": {},
    }
    start = time.monotonic()
    failed = 0
    with torch.no_grad():
        for name, measure in cases(args.only.split(",")):
            if time.monotonic() - start > args.deadline:
                print(f"deadline of {args.deadline} s: {name} and what follows was left out")
                break
            began = time.monotonic()
            try:
                result["cases"][name] = measure()
            except Exception as error:  # one case must not take the others along
                failed += 1
                result["cases"][name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            figures = result["cases"][name].items()
            text = "  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in figures)
            print(f"{name:28} {text}  ({time.monotonic() - began:.1f} s)", flush=True)
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(result, file, indent=1)
    return 1 if failed else 0


def prewarm_one(group):
    import torch

    with torch.no_grad():
        if group == "model":
            peer = Peer()
            peer.generate(1, 128, 1)
            peer.generate(64, 128, 1)
        elif group == "decode":
            for heads, dim in DECODE_HEADS:
                for batch in DECODE_BATCHES:
                    decode_case(batch, heads, dim)()
        else:
            heads, dim = map(int, group.split("x"))
            chunk_case(1, 512, heads, dim)()
        torch.cuda.synchronize()


def prewarm(args):
    groups = [f"{heads}x{dim}" for heads, dim in CHUNK_HEADS] + ["model", "decode"]
    environment = dict(os.environ, FLA_CACHE_RESULTS="0")
    command = [sys.executable, os.path.abspath(__file__), "--prewarm-one"]
    children = {
        group: subprocess.Popen([*command, group], env=environment, stdout=subprocess.DEVNULL)
        for group in groups
    }
    end = time.monotonic() + args.deadline
    failed = 0
    for group, child in children.items():
        try:
            status = child.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            status = "stopped at the deadline"
        if status != 0:
            failed += 1
            print(f"prewarm {group}: {status}", file=sys.stderr)
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", default="fla.json")
    parser.add_argument("--deadline", type=float, default=120, help="seconds")
    parser.add_argument("--only", default="chunk,decode,model")
    parser.add_argument("--prewarm", action="store_true")
    parser.add_argument("--prewarm-one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prewarm_one:
        return prewarm_one(args.prewarm_one)
    return prewarm(args) if args.prewarm else run(args)


if __name__ == "__main__":
    sys.exit(main())
