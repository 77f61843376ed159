"""Small checkpoints made on the spot: random weights, a trained tokenizer, broken variants."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import sentencepiece
from harness import GOLDEN
from safetensors.numpy import load_file, save_file

CHAT_TEMPLATE = """\
bos: true
roles:
  system:
    prefix: [{token: <|system|>}]
    suffix: [{token: <|end|>}]
  user:
    prefix: [{token: <|user|>}]
    suffix: [{token: <|end|>}]
  assistant:
    prefix: [{token: <|assistant|>}]
    suffix: [{token: <|end|>}]
generation_prompt: [{token: <|assistant|>}]
stop_tokens: [<|end|>]
"""


def write_text_checkpoint(folder: Path, vocab_size: int = 400, seed: int = 5) -> None:
    """The golden tiny model with a larger random vocabulary, mostly bytes, and a tokenizer.

    Its text is noise of single bytes and word pieces: what a stream must cut into whole characters.
    """
    folder.mkdir(parents=True)
    corpus = folder / "corpus.txt"
    lines = [f"the old {animal} went over the hill and said hello number {number} äöü €"
             for animal in ("dog", "cat", "king", "river") for number in range(60)]
    corpus.write_text("\n".join(lines), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=vocab_size,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
        control_symbols=["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"])
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocab_size = tokenizer.vocab_size()

    tensors = load_file(str(GOLDEN / "tiny" / "model.safetensors"))
    rng = np.random.default_rng(seed)
    for name in ("model.embeddings.weight", "lm_head.weight"):
        hidden = tensors[name].shape[1]
        tensors[name] = rng.normal(0, 0.5, (vocab_size, hidden)).astype(np.float32)
    save_file(tensors, str(folder / "model.safetensors"))
    config = json.loads((GOLDEN / "tiny" / "config.json").read_text())
    config["vocab_size"] = vocab_size
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.yaml").write_text(CHAT_TEMPLATE)


def copy_golden(folder: Path, name: str = "tiny") -> Path:
    shutil.copytree(GOLDEN / name, folder)
    (folder / "expected.st").unlink()
    return folder


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


def edit_tensors(folder: Path, edit) -> None:
    """`edit` changes the dict of tensors in place."""
    path = str(folder / "model.safetensors")
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def shard(folder: Path) -> None:
    """Splits model.safetensors in two with the usual index file."""
    tensors = load_file(str(folder / "model.safetensors"))
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2],
             "model-00002-of-00002.safetensors": names[1::2]}
    weight_map = {}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, str(folder / file))
        weight_map.update({name: file for name in members})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
