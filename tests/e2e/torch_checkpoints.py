"""Checkpoints saved by torch, as a program: `torch_checkpoints.py SOURCE FOLDER` makes FOLDER/KIND
of every kind below.

In a process of its own for the reason that reference.py gives.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def save_bin(tensors: dict, folder: Path) -> None:
    torch.save(collections.OrderedDict(tensors), folder / "pytorch_model.bin")


def save_sharded_bin(tensors: dict, folder: Path) -> None:
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2],
             "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, members in parts.items():
        torch.save({name: tensors[name] for name in members}, folder / file)
    weight_map = {name: file for file, members in parts.items() for name in members}
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def save_trainer(tensors: dict, folder: Path) -> None:
    """What a training loop leaves: compiled and data-parallel names, an EMA copy, an optimizer."""
    wrapped = {f"_orig_mod.module.{name}": torch.nn.Parameter(tensor)
               for name, tensor in tensors.items()}
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    torch.save({"epoch": 3, "loss": 0.25, "args": {"lr": 1e-3, "betas": (0.9, 0.95)},
                "state_dict": wrapped, "ema": {k: 2 * v for k, v in tensors.items()},
                "optimizer": optimizer.state_dict(), "rng_state": torch.get_rng_state()},
               folder / "last.pt")


def save_views(tensors: dict, folder: Path) -> None:
    """Every tensor a view: matrices turned, vectors of one shared storage."""
    flat = torch.cat([torch.zeros(5)] + [t.flatten() for t in tensors.values() if t.dim() != 2])
    views, at = {}, 5
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            views[name] = tensor.t().contiguous().t()
        else:
            views[name] = flat[at:at + tensor.numel()].view(tensor.shape)
            at += tensor.numel()
    assert not all(view.is_contiguous() for view in views.values())
    torch.save(views, folder / "model.pth")


def save_half(tensors: dict, folder: Path) -> None:
    """f16, and the same numbers in float32 as a plain checkpoint beside it."""
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    torch.save(halves, folder / "pytorch_model.bin")
    save_file({name: half.float() for name, half in halves.items()}, str(folder / "wide.st"))


def save_legacy(tensors: dict, folder: Path) -> None:
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


class Evil:
    def __reduce__(self):
        return os.system, ("touch " + os.environ["EVIL_FILE"],)


def save_evil(tensors: dict, folder: Path) -> None:
    torch.save({**tensors, "extra": Evil()}, folder / "pytorch_model.bin")


def save_module(tensors: dict, folder: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), folder / "pytorch_model.bin")


def save_nan(tensors: dict, folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = float("nan")
    torch.save(tensors, folder / "pytorch_model.bin")


KINDS = {name.removeprefix("save_"): function for name, function in list(globals().items())
         if name.startswith("save_") and name != "save_file"}

if __name__ == "__main__":
    source, out = map(Path, sys.argv[1:])
    for kind, function in KINDS.items():
        folder = out / kind
        folder.mkdir(parents=True)
        shutil.copy(source / "config.json", folder)
        function(load_file(str(source / "model.safetensors")), folder)
