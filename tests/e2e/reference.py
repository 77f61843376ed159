"""The PyTorch side of the bundled model's tests, as a program: a JSON object in, a JSON value out.

It runs in a process of its own because Debian's PyTorch and the SentencePiece and grpcio-tools of PyPI each
bring a protobuf library, and two of them in one process overwrite each other's memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "python"))

import evaluate  # noqa: E402
from osdn.data.tokenizer import Tokenizer  # noqa: E402
from osdn.model import Config, OsdnOptions, load  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def widen(model: str, summary: dict, out: str) -> None:
    """A float32 checkpoint from a model directory; `summary` is what osdn-tools inspect --json says."""
    arch = summary["architecture"]
    config = Config(
        model_type=arch["type"], hidden_size=arch["hidden_size"], num_heads=arch["heads"],
        num_hidden_layers=arch["layers"], vocab_size=arch["vocab_size"],
        expand_k=arch["key_dim"] * arch["heads"] / arch["hidden_size"],
        expand_v=arch["value_dim"] * arch["heads"] / arch["hidden_size"],
        intermediate_size=arch["intermediate_size"], conv_size=arch["conv_size"],
        norm_eps=arch["norm_eps"], use_gate=arch["use_gate"], use_beta=arch["use_beta"],
        use_short_conv=arch["use_short_conv"], allow_neg_eigval=arch["allow_neg_eigval"],
        tie_word_embeddings=arch["tie_embeddings"], qk_norm=arch["qk_norm"],
        qk_activation=arch["qk_activation"], osdn=OsdnOptions(**summary["osdn"]))
    folder = Path(out)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    tensors = load_file(str(Path(model) / "weights.safetensors"))
    save_file({name: tensor.to(torch.float32) for name, tensor in tensors.items()},
              str(folder / "model.safetensors"))
    (folder / "tokenizer.model").write_bytes((Path(model) / "tokenizer.model").read_bytes())


@torch.no_grad()
def generate(checkpoint: str, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Greedy continuations, never stopped early."""
    model = load(Path(checkpoint))
    return [model.generate([prompt], tokens, set())[0] for prompt in prompts]


@torch.no_grad()
def logits(checkpoint: str, ids: list[int], out: str) -> None:
    save_file({"logits": load(Path(checkpoint))(torch.tensor([ids]))[0][0].contiguous()}, out)


def exams(tokenizer: str, count: int, seed: int, facts: list[int]) -> list[dict]:
    """Held-out conversations: every question's history, its ids and the one exact answer."""
    encode = Tokenizer(Path(tokenizer)).prompt
    questions = []
    for messages in evaluate.exams(count, seed, tuple(facts)):
        for index, message in enumerate(messages):
            if message.role == "assistant" and message.kind:
                history = messages[:index]
                questions.append({"history": [(m.role, m.text) for m in history],
                                  "ids": encode(history), "answer": message.text})
    return questions


if __name__ == "__main__":
    arguments = json.load(sys.stdin)
    command = {"widen": widen, "generate": generate, "logits": logits, "exams": exams}[sys.argv[1]]
    json.dump(command(**arguments), sys.stdout)
