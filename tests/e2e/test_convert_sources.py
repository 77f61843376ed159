"""osdn-tools convert on what torch, transformers and flash-linear-attention leave on disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import copy_golden, edit_tensors
from harness import GOLDEN, REPO, run_tools
from safetensors.numpy import load_file
from test_tools import convert_fails, score

CHECKPOINTS = REPO / "tests" / "data" / "checkpoints"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The golden tiny model as torch saves it: a folder for each of torch_checkpoints.KINDS."""
    folder = tmp_path_factory.mktemp("saved")
    program = Path(__file__).parent / "torch_checkpoints.py"
    subprocess.run([sys.executable, program, GOLDEN / "tiny", folder], check=True,
                   env={**os.environ, "EVIL_FILE": str(folder / "executed")})
    return folder


def same_weights(a: Path, b: Path) -> bool:
    return (a / "weights.safetensors").read_bytes() == (b / "weights.safetensors").read_bytes()


# --- The published DeltaNet layout: fla's own DeltaNetForCausalLM is the oracle ---

@pytest.mark.parametrize("name", ["fla_plain", "fla_options", "fla_dcp"])
def test_logits_of_fla_delta_net(tmp_path, name):
    run_tools("convert", CHECKPOINTS / name, tmp_path / "model")
    expected = load_file(str(CHECKPOINTS / name / "logits.safetensors"))
    for flags in (["--backend", "reference"], ["--backend", "cpu"],
                  ["--backend", "cpu", "--step", "1"]):
        logits = score(tmp_path / "model", expected["ids"].tolist(), tmp_path / "l.st", *flags)
        assert np.abs(logits - expected["logits"]).max() <= 1e-3
        assert (logits.argmax(-1) == expected["logits"].argmax(-1)).all()


# --- torch.save ---

@pytest.mark.parametrize("kind", ["bin", "sharded_bin", "views"])
def test_torch_files_give_the_same_weights(tiny_model, saved, tmp_path, kind):
    run_tools("convert", saved / kind, tmp_path / "model")
    assert same_weights(tmp_path / "model", tiny_model)


def test_a_trainers_checkpoint_and_its_ema(tiny_model, saved, tmp_path):
    source = saved / "trainer"
    done = run_tools("convert", source / "last.pt", tmp_path / "model")
    assert "the weights are those under state_dict.module" in done.stderr
    assert same_weights(tmp_path / "model", tiny_model)

    run_tools("convert", source, tmp_path / "ema", "--weights-key", "ema")
    name = "model.norm.weight"
    plain, ema = (load_file(str(folder / "weights.safetensors"))[name]
                  for folder in (tiny_model, tmp_path / "ema"))
    assert np.array_equal(ema, 2 * plain)
    convert_fails_with(source, ["--weights-key", "shadow"], "shadow", "ema, state_dict")


def test_half_precision(saved, tmp_path):
    source = saved / "half"
    run_tools("convert", source, tmp_path / "model")
    wide = tmp_path / "wide"
    wide.mkdir()
    shutil.copy(source / "config.json", wide)
    shutil.copy(source / "wide.st", wide / "model.safetensors")
    run_tools("convert", wide, tmp_path / "reference")
    assert same_weights(tmp_path / "model", tmp_path / "reference")


def convert_fails_with(source: Path, flags: list, *names: str) -> None:
    done = run_tools("convert", source, source.parent / "never", *flags, check=False)
    assert done.returncode == 1
    for name in names:
        assert name in done.stderr, f"{name!r} is not in: {done.stderr}"
    assert not (source.parent / "never").exists()


def test_nothing_in_a_pickle_is_executed(saved):
    convert_fails(saved / "evil", "global posix.system", "is refused")
    assert not (saved / "executed").exists()


@pytest.mark.parametrize("kind, problem", [
    ("legacy", "before PyTorch 1.6"), ("module", "global torch.nn.modules.linear.Linear"),
    ("nan", "model.layers.1.mlp.up_proj.weight: element 197 is not finite")])
def test_refused_torch_files(saved, kind, problem):
    convert_fails(saved / kind, problem)


def test_damaged_storage_is_found(saved, tmp_path):
    source = shutil.copytree(saved / "bin", tmp_path / "source")
    file = source / "pytorch_model.bin"
    data = bytearray(file.read_bytes())
    weight = load_file(str(GOLDEN / "tiny" / "model.safetensors"))["lm_head.weight"].tobytes()
    data[data.index(weight) + 1000] ^= 1
    file.write_bytes(data)
    convert_fails(source, "lm_head.weight", "checksum")
    run_tools("convert", source, tmp_path / "model", "--ignore-checksums")


# --- torch.distributed.checkpoint ---

def test_dcp_names_what_is_missing(tmp_path):
    source = shutil.copytree(CHECKPOINTS / "fla_dcp", tmp_path / "source")
    (source / "__1_0.distcp").rename(tmp_path / "aside")
    convert_fails(source, "__1_0.distcp")
    (source / "__1_0.distcp").write_bytes((tmp_path / "aside").read_bytes()[:5000])
    convert_fails(source, "__1_0.distcp", "truncated")
    (source / "config.json").rename(tmp_path / "config.json")
    convert_fails(source, "config.json", "--config")
    (tmp_path / "aside").rename(source / "__1_0.distcp")
    run_tools("convert", source, tmp_path / "model", "--config", tmp_path / "config.json")


# --- Name maps ---

def rename(tensors: dict, pattern: str, replacement: str) -> None:
    for name in list(tensors):
        tensors[re.sub(pattern, replacement, name)] = tensors.pop(name)


def fused_source(folder: Path) -> Path:
    """The golden tiny model as fla wrote it in 2024: gate_proj and up_proj in one matrix."""
    source = copy_golden(folder)

    def fuse(tensors):
        for layer in range(2):
            mlp = f"model.layers.{layer}.mlp."
            tensors[mlp + "gate_proj.weight"] = np.concatenate(
                [tensors[mlp + "gate_proj.weight"], tensors.pop(mlp + "up_proj.weight")])

    edit_tensors(source, fuse)
    return source


def test_built_in_maps_are_found(tiny_model, tmp_path):
    done = run_tools("convert", fused_source(tmp_path / "fused"), tmp_path / "a")
    assert "built-in map fla-fused-mlp" in done.stderr
    assert same_weights(tmp_path / "a", tiny_model)

    source = copy_golden(tmp_path / "llama")

    def as_llama(tensors):
        rename(tensors, r"\.embeddings\.", ".embed_tokens.")
        rename(tensors, r"\.attn_norm\.", ".input_layernorm.")
        rename(tensors, r"\.mlp_norm\.", ".post_attention_layernorm.")
        rename(tensors, r"\.attn\.", ".self_attn.")

    edit_tensors(source, as_llama)
    run_tools("convert", source, tmp_path / "b", "--map", "llama")
    assert same_weights(tmp_path / "b", tiny_model)


def test_map_file_and_dry_run(tiny_model, tmp_path):
    source = copy_golden(tmp_path / "source")

    def as_foreign(tensors):
        for layer in range(2):
            attn = f"model.layers.{layer}.attn."
            qkv = [tensors.pop(f"{attn}{name}_proj.weight") for name in "qkv"]
            tensors[f"h.{layer}.qkv"] = np.ascontiguousarray(np.concatenate(qkv).T)
            head = tensors.pop(f"{attn}o_proj.weight")
            for part, rows in enumerate(np.split(head, 4, axis=1)):
                tensors[f"h.{layer}.out.{part}"] = np.ascontiguousarray(rows)
        tensors["position_ids"] = np.arange(5)

    edit_tensors(source, as_foreign)
    convert_fails(source, "missing: model.layers.0.attn.q_proj.weight", "unexpected: h.0.qkv")
    rules = tmp_path / "map.yaml"
    rules.write_text(r"""
rules:
  - match: 'h\.(\d+)\.qkv'
    transpose: true
    split: ['model.layers.\1.attn.q_proj.weight', 'model.layers.\1.attn.k_proj.weight',
            'model.layers.\1.attn.v_proj.weight']
  - {match: 'h\.(\d+)\.out\.(\d+)', concat: 'model.layers.\1.attn.o_proj.weight', part: '\2', dim: 1}
  - {match: position_ids, ignore: true}
""")
    dry = run_tools("convert", source, tmp_path / "model", "--map", rules, "--dry-run")
    assert re.search(r"h\.1\.qkv +-> model\.layers\.1\.attn\.k_proj\.weight +F32\[64,64\] +"
                     r"transposed, part 2 of 3", dry.stdout)
    assert re.search(r"position_ids +ignored", dry.stdout)
    assert not (tmp_path / "model").exists()
    run_tools("convert", source, tmp_path / "model", "--map", rules)
    assert same_weights(tmp_path / "model", tiny_model)

    rules.write_text("rules: [{match: position_ids, ignore: true}]")
    dry = run_tools("convert", source, tmp_path / "x", "--map", rules, "--dry-run", check=False)
    assert dry.returncode == 1 and "h.0.qkv" in dry.stdout and "missing: " in dry.stderr


# --- export and verify ---

def test_export_and_back_with_a_tokenizer(text_model, tmp_path):
    run_tools("export", text_model, tmp_path / "checkpoint")
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == [
        "chat_template.yaml", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.model", "tokenizer_config.json"]
    run_tools("convert", tmp_path / "checkpoint", tmp_path / "back", "--name", text_model.name)
    done = run_tools("verify", text_model, tmp_path / "back", "--exact", "--json")
    assert json.loads(done.stdout)["identical"]
    first, second = ((folder / "model.yaml").read_text().split("source:")[0]
                     for folder in (text_model, tmp_path / "back"))
    assert first == second


def test_verify_fails_beyond_its_bars(text_model, tmp_path):
    run_tools("quantize", text_model, tmp_path / "int4", "--dtype", "int4")
    (tmp_path / "text").write_text("the old dog went over the hill and said hello")
    flags = ["--text", tmp_path / "text"]
    done = run_tools("verify", text_model, tmp_path / "int4", *flags)
    assert "attn.q_proj.weight (f32, int4)" in done.stdout and "perplexity" in done.stdout
    for flag in (["--exact"], ["--max-kl", "1e-9"]):
        done = run_tools("verify", text_model, tmp_path / "int4", *flags, *flag, check=False)
        assert done.returncode == 1 and flag[0] in done.stderr
