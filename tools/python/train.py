"""Trains OSDN or DeltaNet on shards made by osdn.data.corpus; resumes where it stopped.

Lanes are endless streams: a window of 1024 tokens starts from the state in which the one before
ended (without gradient), so documents may be longer than a window. On a GPU forward and backward
are one captured CUDA graph and the optimizer another; between them the host looks at one flag:
did a preconditioner leave its box? Then the step is run again with the exact clipped recurrence.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from osdn.data.corpus import ALIGN, EXACT, PAD, TEXT, shard_path
from osdn.data.tokenizer import BOS, EOS
from osdn.model import (MLP, Config, LanguageModel, LayerState, Layout, OsdnOptions, RMSNorm,
                        ShortConvolution, load, save)

LOG_EVERY = 50


@dataclasses.dataclass
class Schedule:
    """Linear warm-up, flat, then linear decay to a tenth of a percent over the last part."""

    peak: float
    total: int
    warmup: int = 200
    decay: float = 0.4
    resumed_at: int = 0  # a fresh optimizer warms up again after this step

    def rate(self, step: int) -> float:
        warm = min(1.0, (step - self.resumed_at + 1) / self.warmup)
        left = (self.total - step) / (self.decay * self.total)
        return self.peak * warm * max(0.001, min(1.0, left))


class Trainer:
    """Model, optimizer, static buffers and the step, captured or eager."""

    def __init__(self, model: LanguageModel, args: argparse.Namespace, window: int) -> None:
        self.model, self.device = model, torch.device(args.device)
        model.to(self.device).train()
        self.parameters = list(model.parameters())
        matrices = [p for p in self.parameters if p.dim() >= 2]
        others = [p for p in self.parameters if p.dim() < 2]
        graph = self.device.type == "cuda"
        self.rate = torch.tensor(0.0, device=self.device)
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": args.weight_decay},
             {"params": others, "weight_decay": 0.0}],
            lr=self.rate, betas=(0.9, 0.95), eps=1e-8, capturable=graph, fused=graph)
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.rows = torch.zeros(2, args.lanes, window + 1, dtype=torch.int64, device=self.device)
        self.state = model.new_state(args.lanes)
        self.next = model.new_state(args.lanes)
        self.weights = torch.tensor([0.0, 1.0, args.answer_weight, args.user_weight],
                                    device=self.device)
        self.report = torch.zeros(7, device=self.device)
        self.graphs: tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph] | None = None
        for module in model.modules():
            if isinstance(module, RMSNorm) and graph:
                module.narrow = torch.bfloat16  # what autocast would make of it, but only once
            if args.compile and isinstance(module, (RMSNorm, MLP, ShortConvolution)):
                module.compile()

    def tensors(self, state: list[LayerState]) -> list[Tensor]:
        return [t for layer in state for t in (*layer.tails, layer.s, layer.d)]

    def reset(self) -> None:
        for layer in self.state:
            for tensor in (*layer.tails, layer.s):
                tensor.zero_()
            layer.d.fill_(1)

    def forward_backward(self) -> None:
        """Gradients, the report and the next state from the static buffers."""
        torch._foreach_zero_([p.grad for p in self.parameters])
        ids, classes = self.rows[0], self.rows[1, :, 1:]
        inputs, targets = ids[:, :-1], ids[:, 1:]
        keep = (inputs[:, ::ALIGN] != BOS).float()
        layout = Layout((inputs != PAD).float(), keep)
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False,
                            enabled=self.device.type == "cuda"):
            hidden, state = self.model.hidden(inputs, self.state, layout)
            logits = self.model.logits(hidden)
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        weights = self.weights[classes.flatten()]
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        with torch.no_grad():
            torch._foreach_copy_(self.tensors(self.next), self.tensors(state))
            exact, text = (classes == EXACT).flatten(), (classes == TEXT).flatten()
            right = (logits.argmax(-1) == targets).flatten()
            spread = torch.stack([layer.d for layer in state])
            self.report.copy_(torch.stack([
                loss, (losses * exact).sum() / exact.sum(),
                (right & exact).sum() / exact.sum(), (losses * text).sum() / text.sum(),
                (inputs != PAD).sum(), spread.amin(), spread.amax()]))

    def update(self) -> None:
        """Clips the gradient, steps the optimizer, and moves the state on."""
        gradients = [p.grad for p in self.parameters]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        torch._foreach_mul_(gradients, (1.0 / norm.clamp_min(1.0)))
        self.optimizer.step()
        torch._foreach_copy_(self.tensors(self.state), self.tensors(self.next))

    def capture(self) -> None:
        """Captures both halves; warm-up runs with a zero rate, so nothing is trained by it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.forward_backward()
        torch.cuda.current_stream().wait_stream(stream)
        self.graphs = (torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph())
        with torch.cuda.graph(self.graphs[0]):
            self.forward_backward()
        # The optimizer's lazily made state must exist before capture; rate 0 leaves weights alone.
        if not self.optimizer.state:
            self.rate.zero_()
            self.update()
            for state in self.optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()
        with torch.cuda.graph(self.graphs[1]):
            self.update()
        self.reset()

    def step(self, rows: Tensor, rate: float) -> list[float]:
        """One training step; returns the report."""
        self.rows.copy_(rows, non_blocking=True)
        self.rate.fill_(rate)
        if self.graphs is None:
            self.forward_backward()
        else:
            self.graphs[0].replay()
        report = self.report.tolist()
        if not math.isfinite(report[0]):
            self.reset()
            return report
        if self.graphs is None:
            self.update()
        else:
            self.graphs[1].replay()
        return report


def windows(folder: Path, number: int, window: int) -> list[Tensor]:
    """A shard's windows, each with the first token of the next one as its last target."""
    path = shard_path(folder, number)
    while not path.exists():
        time.sleep(0.05)
    rows = np.load(path).astype(np.int64)
    rows = torch.from_numpy(np.pad(rows, ((0, 0), (0, 0), (0, 1))))
    return [rows[:, :, start:start + window + 1]
            for start in range(0, rows.shape[2] - 1, window)]


def make_config(args: argparse.Namespace) -> Config:
    apf = "none" if args.eta == 0 else args.apf
    return Config(model_type="delta_net" if args.eta == 0 else "osdn", hidden_size=args.hidden,
                  num_heads=args.heads, num_hidden_layers=args.layers,
                  intermediate_size=args.intermediate, tie_word_embeddings=True,
                  vocab_size=args.vocab, bos_token_id=BOS, eos_token_id=EOS,
                  osdn=OsdnOptions(eta=args.eta, apf=apf))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--total", type=int, required=True, help="shards of the whole training")
    parser.add_argument("--until", type=int, help="stop after this shard")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this long")
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder, resumed from")
    parser.add_argument("--init", type=Path, help="checkpoint to start from, as step 0")
    parser.add_argument("--decay", type=float, default=0.4, help="last share of the steps")
    parser.add_argument("--eta", type=float, default=0.1, help="0 trains plain DeltaNet")
    parser.add_argument("--apf", default="scalar", choices=["none", "scalar"])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--intermediate", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--lanes", type=int, default=32)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--answer-weight", type=float, default=10.0)
    parser.add_argument("--user-weight", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_float32_matmul_precision("high")
    progress_path, optimizer_path = args.out / "progress.json", args.out / "optimizer.pt"
    done, tokens = 0, 0.0
    if progress_path.exists():
        model = load(args.out)
        progress = json.loads(progress_path.read_text())
        done, tokens = progress["shards"], progress["tokens"]
    elif args.init:
        model = load(args.init)
    else:
        model = LanguageModel(make_config(args))
        model.initialise(torch.Generator().manual_seed(args.seed))
    trainer = Trainer(model, args, args.window)
    schedule = Schedule(args.rate, 0, decay=args.decay)
    if optimizer_path.exists():
        trainer.optimizer.load_state_dict(torch.load(optimizer_path, trainer.device,
                                                     weights_only=True))
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.rate
        schedule.resumed_at = -schedule.warmup  # a loaded optimizer needs no second warm-up
    started = saved = time.monotonic()
    count = sum(p.numel() for p in model.parameters())
    print(f"{count} parameters, {trainer.device}, from shard {done}", flush=True)

    def store() -> None:
        save(model, args.out)
        torch.save(trainer.optimizer.state_dict(), optimizer_path)
        progress_path.write_text(json.dumps({"shards": done, "tokens": tokens}))

    log = (args.out.with_suffix(".log")).open("a")
    first = windows(args.shards, done, args.window)
    schedule.total = args.total * len(first)
    if schedule.resumed_at == 0:
        schedule.resumed_at = done * len(first)
    if trainer.device.type == "cuda":
        trainer.rows.copy_(first[0])
        trainer.capture()
    last_time, last_tokens, sums = time.monotonic(), tokens, np.zeros(7)
    for number in range(done, args.until or args.total):
        trainer.reset()
        for index, rows in enumerate(windows(args.shards, number, args.window)):
            step = number * len(first) + index
            report = trainer.step(rows, schedule.rate(step))
            tokens += report[4]
            sums += report
            if (step + 1) % LOG_EVERY == 0:
                now = time.monotonic()
                loss, exact, right, text = (sums / LOG_EVERY)[:4]
                line = (f"step {step + 1} tokens {tokens / 1e6:.1f}M rate {schedule.rate(step):.1e}"
                        f" loss {loss:.3f} answer {exact:.4f} right {right:.4f} text {text:.3f}"
                        f" d {report[5]:.2f}..{report[6]:.2f}"
                        f" {(tokens - last_tokens) / (now - last_time) / 1e3:.0f}k/s")
                print(line, file=log, flush=True)
                if (step + 1) % (10 * LOG_EVERY) == 0:
                    print(args.out.name, line, flush=True)
                last_time, last_tokens, sums = now, tokens, np.zeros(7)
        done = number + 1
        now = time.monotonic()
        if now - started > args.seconds:
            break
        if now - saved > args.save_every:
            store()
            saved = now
    store()
    print(f"{args.out.name}: {done} of {args.total} shards, {tokens / 1e6:.1f}M tokens, "
          f"{time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
