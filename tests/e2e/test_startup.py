"""Wrong options and broken models: an error that names the thing, the right exit code, no crash."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from harness import run_server

USAGE, FAILURE = 2, 1


@pytest.fixture
def broken_model(tiny_model, tmp_path) -> Path:
    """A copy to break."""
    return shutil.copytree(tiny_model, tmp_path / "broken")


def fails(code: int, *arguments, names: list[str]) -> str:
    done = run_server(*arguments)
    assert done.returncode == code, done.stderr
    for name in names:
        assert name in done.stderr, f"{name!r} is not in: {done.stderr}"
    return done.stderr


def serve_fails(model: Path, *names: str) -> str:
    return fails(FAILURE, "--model", model, "--grpc-address", "127.0.0.1:0", names=list(names))


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new, 1))


# --- options ---

@pytest.mark.parametrize("arguments, names", [
    ([], ["--model"]),
    (["--model", "x", "--no-such-flag"], ["--no-such-flag"]),
    (["--model", "x", "--max-slots", "0"], ["--max-slots", "0", "65536"]),
    (["--model", "x", "--max-slots", "many"], ["--max-slots", "many"]),
    (["--model", "x", "--backend", "tpu"], ["--backend", "tpu", "reference"]),
    (["--model", "x", "--drain-timeout", "30"], ["--drain-timeout", "30", "unit"]),
    (["--model", "x", "--grpc-address", "nonsense"], ["--grpc-address", "nonsense"]),
    (["--model", "x", "--grpc-address", "127.0.0.1:99999"], ["99999"]),
    (["--model", "x", "--grpc-address", "0.0.0.0:0"], ["0.0.0.0:0", "--insecure"]),
    (["--model", "x", "--max-tokens-default", "9", "--max-tokens-limit", "8"],
     ["--max-tokens-default", "9", "8"]),
    (["--model", "x", "--config", "/no/such.yaml"], ["/no/such.yaml"]),
])
def test_wrong_usage(arguments, names):
    fails(USAGE, *arguments, names=names)


def test_insecure_allows_other_addresses(servers, tiny_model):
    server = servers(tiny_model, "--insecure", address="0.0.0.0:0", serving=False)
    assert server.address.startswith("0.0.0.0:")


@pytest.mark.parametrize("text, names", [
    ("scheduler:\n  max_slotz: 3\n", ["max_slotz", ":2"]),
    ("scheduler:\n  max_slots: 0\n", ["max_slots", "65536", ":2"]),
    ("scheduler:\n  max_slots: [1]\n", ["max_slots"]),
    ("scheduler: 5\n", ["scheduler"]),
    ("grpc:\n  address: 127.0.0.1:0\n  address: 127.0.0.1:1\n", ["address"]),
    ("grpc:\n address: [unclosed\n", ["server.yaml"]),
    ("- a list\n", ["server.yaml"]),
])
def test_wrong_config_file(tmp_path, text, names):
    path = tmp_path / "server.yaml"
    path.write_text(text)
    fails(USAGE, "--model", "x", "--config", path, names=["server.yaml", *names])


def test_config_file_is_used_and_flags_win(servers, tiny_model, tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text(f"model: {tiny_model}\nscheduler:\n  max_slots: 3\n  max_queued_requests: 9\n"
                    "drain:\n  propagation: 0s\n")
    done = run_server("--config", path, "--max-slots", "4", "--check-config")
    assert done.returncode == 0
    assert "scheduler.max_slots = 4 (flag)" in done.stdout
    assert "scheduler.max_queued_requests = 9 (file)" in done.stdout
    server = servers(tiny_model, "--config", str(path))
    assert "scheduler.max_slots = 3 (file)" in server.log


# --- models ---

def test_missing_directory(tmp_path):
    serve_fails(tmp_path / "nothing", "nothing")


def test_a_checkpoint_that_was_not_converted(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    serve_fails(tmp_path, "model.yaml")


def test_missing_weights(broken_model):
    (broken_model / "weights.safetensors").unlink()
    serve_fails(broken_model, "weights.safetensors")


@pytest.mark.parametrize("size", [0, 7, 8, 100, 5000, -1])
def test_truncated_weights(broken_model, size):
    weights = broken_model / "weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:size])
    error = serve_fails(broken_model, "weights.safetensors")
    assert str(len(data)) in error, "the size that is wanted"


@pytest.mark.parametrize("size", [0, 7, 8, 100, 5000, -1])
def test_truncated_weights_without_checksums(broken_model, size):
    """model.yaml agrees with the broken file's size; the reader itself must notice."""
    weights = broken_model / "weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:size])
    replace_in(broken_model / "model.yaml", str(len(data)), str(len(data[:size])))
    fails(FAILURE, "--model", broken_model, "--grpc-address", "127.0.0.1:0",
          "--verify-checksums", "false", names=["weights.safetensors"])


@pytest.mark.parametrize("where", [3, 200, 0.5, -1])
def test_flipped_byte(broken_model, where):
    weights = broken_model / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[int(where * len(data)) if isinstance(where, float) else where] ^= 0x40
    weights.write_bytes(data)
    serve_fails(broken_model, "weights.safetensors", "sha256")


def test_enormous_header_length(broken_model):
    weights = broken_model / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[:8] = (2**63).to_bytes(8, "little")
    weights.write_bytes(data)
    fails(FAILURE, "--model", broken_model, "--grpc-address", "127.0.0.1:0",
          "--verify-checksums", "false", names=["weights.safetensors"])


def test_config_contradicts_the_tensors(broken_model):
    replace_in(broken_model / "model.yaml", "hidden_size: 64", "hidden_size: 128")
    serve_fails(broken_model, "64", "128")


def test_config_wants_more_layers(broken_model):
    replace_in(broken_model / "model.yaml", "num_layers: 2", "num_layers: 3")
    serve_fails(broken_model, "model.layers.2")


@pytest.mark.parametrize("old, new, names", [
    ("format_version: 1", "format_version: 99", ["format_version", "99"]),
    ("eta: 0.003", "eta: nan", ["eta"]),
    ("num_heads: 4", "num_heads: 0", ["num_heads", "0"]),
    ("num_heads: 4", "num_heads: 4000000000", ["num_heads"]),
    ("norm_eps:", "norm_epz:", ["norm_epz"]),
    ("vocab_size: 97", "vocab_size: ninety", ["vocab_size", "ninety"]),
])
def test_broken_model_yaml(broken_model, old, new, names):
    replace_in(broken_model / "model.yaml", old, new)
    serve_fails(broken_model, "model.yaml", *names)


def test_not_yaml_at_all(broken_model):
    (broken_model / "model.yaml").write_bytes(b"\x00\xff: [}{")
    serve_fails(broken_model, "model.yaml")


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_cuda_without_a_device_says_why(tiny_model, servers):
    fails(FAILURE, "--model", tiny_model, "--grpc-address", "127.0.0.1:0", "--backend", "cuda",
          names=["cuda"])
    assert "backend cpu" in servers(tiny_model, "--backend", "auto").log
