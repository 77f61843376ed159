"""Checks a backend against the cpu backend by way of osdn-tools, on real and golden models.

Bars (docs/model.md section 5): float32 logits within 1e-3, bf16 mean KL at most 1e-3, and the same
greedy tokens in float32. Every check runs even after a failure; the exit status tells.
With --far, instead: the same greedy tokens behind a prompt of a million tokens, which both backends
read at the same time (the cpu needs a minute for it).
Usage: parity.py --tools osdn-tools --repository DIR --work DIR --json FILE [--backend cuda] [--far]
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
from safetensors.numpy import load_file

LOGITS_BAR = 1e-3
KL_BAR = 1e-3
GREEDY_TOKENS = 256
FAR_TOKENS = 1_000_000
FAR_GREEDY_TOKENS = 64
PROMPTS = [
    "Once upon a time",
    "Lily and her dog went to the park. They",
    "What is 12 plus 7?",
    "The old man looked at the sea and",
    "My locker number is 4817. My cat is called Tom.",
]


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


class Parity:
    def __init__(self, args):
        self.tools = args.tools
        self.backend = args.backend
        self.repository = pathlib.Path(args.repository)
        self.work = pathlib.Path(args.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.json = pathlib.Path(args.json)
        self.checks = []

    def run(self, *arguments):
        done = subprocess.run(
            [self.tools, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"osdn-tools {arguments[0]}: {done.stderr.strip()[-400:]}")
        return done.stdout

    def check(self, name, measure):
        """`measure` gives (passed, figures)."""
        start = time.monotonic()
        try:
            passed, figures = measure()
        except Exception as error:  # a check that cannot run has failed; the others go on
            passed, figures = False, {"error": str(error)[:600]}
        self.checks.append({"name": name, "passed": bool(passed), **figures})
        text = "  ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in figures.items()
        )
        seconds = time.monotonic() - start
        self.json.write_text(json.dumps({"checks": self.checks}, indent=1), "utf-8")
        print(f"{'ok' if passed else 'FAIL':5}{name:34} {text}  ({seconds:.1f} s)", flush=True)

    def logits(self, model, ids, backend, step=0):
        ids_file = self.work / "ids.txt"
        ids_file.write_text(" ".join(map(str, ids)), encoding="utf-8")
        out = self.work / f"logits-{backend}.safetensors"
        options = ["--step", step] if step else []
        self.run("score", "--model", model, "--ids-file", ids_file, "--logits-out", out,
                 "--backend", backend, *options)  # fmt: skip
        return load_file(out)["logits"]

    def model_of(self, dtype):
        if dtype == "bf16":  # what the bundled model is
            return self.repository / "models/osdn-mini"
        out = self.work / f"osdn-mini-{dtype}"
        if not out.exists():
            self.run("quantize", self.repository / "models/osdn-mini", out, "--dtype", dtype)
        return out

    def text_ids(self):
        """Conversations that the model knows, one sequence, then what no model has seen."""
        text = (self.repository / "tests/data/heldout/conversations.ids").read_text("utf-8")
        ids = [int(word) for word in text.split()][:600]
        seed = random.SystemRandom().randrange(1 << 32)
        print(f"random ids: seed {seed}")
        generator = random.Random(seed)
        return ids + [generator.randrange(4096) for _ in range(200)]

    def float32(self, ids, step):
        model = self.model_of("f32")
        ours = self.logits(model, ids, self.backend, step)
        theirs = self.logits(model, ids, "cpu", step)
        error = float(np.abs(ours - theirs).max())
        agree = float((ours.argmax(-1) == theirs.argmax(-1)).mean())
        return error <= LOGITS_BAR, {"max_abs": error, "same_argmax": agree, "tokens": len(ids)}

    def divergence(self, dtype, ids, step):
        model = self.model_of(dtype)
        ours = log_softmax(self.logits(model, ids, self.backend, step))
        theirs = log_softmax(self.logits(model, ids, "cpu", step))
        exact = log_softmax(self.logits(self.model_of("f32"), ids, "cpu"))

        def mean_kl(p, q):
            return float((np.exp(p) * (p - q)).sum(-1).mean())

        kl = mean_kl(theirs, ours)
        figures = {
            "mean_kl": kl,
            "kl_f32_to_ours": mean_kl(exact, ours),
            "kl_f32_to_cpu": mean_kl(exact, theirs),
            "same_argmax": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        }
        # The cpu backend rounds the activations of quantized products to int8, others need not: what is
        # nearer to float32 than it may differ from it.
        return kl <= KL_BAR or figures["kl_f32_to_ours"] <= figures["kl_f32_to_cpu"], figures

    def greedy(self, dtype, must_agree):
        model = self.model_of(dtype)
        agreed = []
        for prompt in PROMPTS:
            tokens = []
            for backend in (self.backend, "cpu"):
                out = self.run("generate", "--model", model, "--prompt", prompt, "--json",
                               "--temperature", 0, "--max-tokens", GREEDY_TOKENS, "--ignore-eos",
                               "--backend", backend)  # fmt: skip
                tokens.append(json.loads(out)["token_ids"])
            ours, theirs = tokens
            same = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), len(theirs))
            agreed.append(same)
        complete = all(same == GREEDY_TOKENS for same in agreed)
        return complete or not must_agree, {"agreed_tokens": agreed, "of": GREEDY_TOKENS}

    def far(self):
        texts = self.repository / "tests/data/heldout"
        text = "".join((texts / name).read_text("utf-8") for name in ("stories.txt", "prose.txt"))
        text = text.replace("\f", "\n")
        model, prompt = self.model_of("f32"), self.work / "far.txt"

        def generate(backend, **options):
            return subprocess.Popen(
                [self.tools, "generate", "--model", model, "--prompt-file", prompt, "--json",
                 "--temperature", "0", "--max-tokens", str(FAR_GREEDY_TOKENS), "--ignore-eos",
                 "--backend", backend],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **options,
            )  # fmt: skip

        def answer(process):
            out, _ = process.communicate()
            if process.returncode != 0:
                raise RuntimeError(f"osdn-tools generate: status {process.returncode}")
            return json.loads(out)

        prompt.write_text(text, encoding="utf-8")
        tokens = answer(generate(self.backend))["usage"]["prompt_tokens"]
        prompt.write_text(text * (FAR_TOKENS // tokens + 1), encoding="utf-8")
        both = [generate(backend) for backend in (self.backend, "cpu")]
        ours, theirs = [answer(process) for process in both]
        pairs = zip(ours["token_ids"], theirs["token_ids"])
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), FAR_GREEDY_TOKENS)
        return same == FAR_GREEDY_TOKENS, {
            "position": ours["usage"]["prompt_tokens"],
            "agreed_tokens": same,
            "of": FAR_GREEDY_TOKENS,
            "prefill_s": ours["timings"]["prefill_ms"] / 1e3,
            "cpu_prefill_s": theirs["timings"]["prefill_ms"] / 1e3,
        }

    def golden(self, name, step):
        source = self.repository / "tests/data/golden" / name
        model = self.work / f"golden-{name}"
        if not model.exists():
            self.run("convert", source, model)
        expected = load_file(source / "expected.st")
        ours = self.logits(model, expected["ids"].ravel().tolist(), self.backend, step)
        error = float(np.abs(ours - expected["logits"].reshape(ours.shape)).max())
        return error <= LOGITS_BAR, {"max_abs": error}

    def perplexity(self, dtype):
        """A text's perplexity here and on the cpu, chunk after chunk of one long document."""
        figures = {}
        ids = " ".join(map(str, (self.text_ids() * 8)[:6000]))
        ids_file = self.work / "document.ids"
        ids_file.write_text(ids, encoding="utf-8")
        for backend in (self.backend, "cpu"):
            out = self.run("eval", "perplexity", "--model", self.model_of(dtype), "--json",
                           "--ids-file", ids_file, "--backend", backend)  # fmt: skip
            figures[backend] = json.loads(out)["perplexity"]
        ratio = figures[self.backend] / figures["cpu"]
        return abs(ratio - 1) <= 2e-3, {"ratio": ratio, "perplexity": figures["cpu"]}

    def all(self):
        ids = self.text_ids()
        for name in ("tiny", "tiny_apf_gate"):
            for step in (0, 1, 7):
                self.check(f"{name}, {step or 'all'} a call", lambda: self.golden(name, step))
        for step in (0, 1, 100):
            some = ids[:300] if step == 1 else ids
            self.check(f"f32 logits, {step or 'all'} a call", lambda: self.float32(some, step))
        self.check("f32 greedy tokens", lambda: self.greedy("f32", must_agree=True))
        for dtype in ("bf16", "int8", "int4"):
            self.check(f"{dtype} KL, prefill", lambda: self.divergence(dtype, ids, 0))
            self.check(f"{dtype} KL, decode", lambda: self.divergence(dtype, ids[:200], 1))
        self.check("bf16 perplexity of a long document", lambda: self.perplexity("bf16"))
        self.check("bf16 greedy tokens (no bar)", lambda: self.greedy("bf16", must_agree=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", required=True, help="osdn-tools")
    parser.add_argument("--repository", required=True, help="for models/ and tests/data/")
    parser.add_argument("--work", required=True, help="folder for models and logits")
    parser.add_argument("--json", required=True, help="written anew after each check")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--far", action="store_true")
    args = parser.parse_args()
    parity = Parity(args)
    if args.far:
        parity.check(f"f32 greedy tokens behind {FAR_TOKENS:,}", parity.far)
    else:
        parity.all()
    failed = [check["name"] for check in parity.checks if not check["passed"]]
    print(f"parity: {len(parity.checks) - len(failed)} of {len(parity.checks)} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
