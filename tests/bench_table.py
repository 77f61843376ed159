"""The table of tests/bench_cpu.sh, from the JSON of `osdn-tools bench`: bf16, int8, int4, and OSDN
against plain DeltaNet. Ratios are medians over repeats."""

from __future__ import annotations

import json
import sys

# Ops that make the OSDN mixer in the model: phases 1 and 2, convolutions, norms, gates.
MIXER = ("mixer", "short conv", "qk prepare", "gates", "output norm")


def case(run: dict, kind: str, **wanted) -> dict:
    return next(entry for entry in run[kind]
                if all(entry[key] == value for key, value in wanted.items()))


def percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f}%"


def rows(bf16: dict, int8: dict, int4: dict, plain: dict) -> list[tuple[str, str, str]]:
    found = []
    for run in (bf16, int8, int4):
        one = case(run, "decode", batch=1, position=1000)
        bar = "" if run is int4 else ">= 90%"
        found.append((f"decode, batch 1, {run['dtype']}: {one['tokens_per_s']:.1f} tokens/s, of read "
                      "bandwidth", percent(one["bandwidth_fraction"]), bar))
    for run in (bf16, int8, int4):
        one, many = (case(run, "decode", batch=n, position=1000) for n in (1, 16))
        found.append((f"decode, batch 16, {run['dtype']}: {many['tokens_per_s']:.1f} tokens/s, "
                      "against batch 1", f"{many['tokens_per_s'] / one['tokens_per_s']:.2f}x",
                      ">= 5x" if run is bf16 else ""))
    for run in (bf16, int8, int4):
        prompt = case(run, "prefill", prompt=2048)
        found.append((f"prefill, 2,048 tokens, {run['dtype']}: {prompt['tokens_per_s']:.0f} tokens/s, "
                      f"of oneDNN's {run['gemm_dtype']} peak", percent(prompt["gemm_fraction"]),
                      ">= 75%" if run is bf16 else ""))
    shares = {op["op"]: op["share"] for op in case(bf16, "prefill", prompt=2048)["ops"]}
    found.append(("mixer, convolutions, norms of q, k and o, in that prefill",
                  percent(sum(shares.get(op, 0) for op in MIXER)), "<= 15%"))
    for kind, keys in (("prefill", {"prompt": 2048}), ("decode", {"batch": 1, "position": 1000}),
                       ("decode", {"batch": 16, "position": 1000})):
        name = f"{kind}, batch {keys['batch']}" if kind == "decode" else kind
        found.append((f"OSDN against plain DeltaNet, {name}",
                      f"{case(plain, kind, **keys)['against_ratio']:.3f}", ">= 0.97"))
    for batch in (1, 16):
        late = case(bf16, "decode", batch=batch, position=1000000)
        found.append((f"decode latency at position 1,000,000 against 1,000, batch {batch}",
                      f"{late['latency_vs_first_position']:.3f}", "1.00 +- 0.02"))
    for sampling in ("greedy", "top_k 40", "top_p 0.9"):
        engine = case(bf16, "engine", batch=16, sampling=sampling)
        found.append((f"engine's step at batch 16, {sampling}: all but the forward pass",
                      percent(engine["overhead_share"]), "< 3%"))
    for run in (bf16, int8, int4):
        found.append((f"load to first token, {run['dtype']} (checksums add "
                      f"{run['checksum_seconds']:.2f} s)", f"{run['first_token_seconds']:.2f} s",
                      "< 1 s"))
        extra = run["resident_bytes"] - run["weight_bytes"] - run["slot_bytes"]
        found.append((f"resident memory above weights and slots, {run['dtype']}",
                      f"{extra / 1e6:.0f} MB", "<= 100 MB"))
    return found


def main() -> None:
    runs = [json.load(open(path, encoding="utf-8")) for path in sys.argv[1:]]
    bf16 = runs[0]
    gemm = bf16["gemm_gflops"]
    print(f"{bf16['model']}, {bf16['backend']}")
    print(f"ceilings: read {bf16['read_gbps']:.1f} GB/s ({bf16['read_buffer_bytes'] / 1e9:.1f} GB buffer); "
          f"oneDNN products f32 {gemm['f32']:.0f}, bf16 {gemm['bf16']:.0f}, int8 {gemm['int8']:.0f} GFLOP/s")
    print(f"state: {bf16['state_bytes_per_sequence'] / 1e6:.2f} MB a sequence\n")
    print("| what | measured | bar |\n| --- | --- | --- |")
    for row in rows(*runs):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
