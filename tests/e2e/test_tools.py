"""osdn-tools convert, inspect and score on files; generate and chat against a server."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pexpect
import pytest
from checkpoints import copy_golden, edit_config, edit_tensors, shard
from harness import GOLDEN, TOOLS, run_tools
from safetensors.numpy import load_file

MODELS = ["tiny", "tiny_apf_gate"]


def score(model, ids, out, *flags) -> np.ndarray:
    ids_file = out.with_suffix(".ids")
    ids_file.write_text(" ".join(map(str, ids)))
    run_tools("score", "--model", model, "--ids-file", ids_file, "--logits-out", out, *flags)
    tensors = load_file(str(out))
    assert list(tensors) == ["logits"] and tensors["logits"].dtype == np.float32
    return tensors["logits"]


# --- score: the golden logits, for every way to split the prompt ---

@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("step", ["1", "7", "64", None])
@pytest.mark.parametrize("name", MODELS)
def test_golden_logits(tiny_model, gated_model, tmp_path, name, step, backend):
    golden = load_file(str(GOLDEN / name / "expected.st"))
    model = tiny_model if name == "tiny" else gated_model
    flags = ["--backend", backend] + (["--step", step] if step else [])
    logits = score(model, golden["ids"].tolist(), tmp_path / "logits.safetensors", *flags)
    assert logits.shape == golden["logits"].shape
    assert np.abs(logits - golden["logits"]).max() <= 1e-3


def test_score_rejects_bad_ids(tiny_model, tmp_path):
    for text, name in (("5 97", "97"), ("5 x", "x"), ("-1", "-1"), ("", "no token ids"),
                       ("99999999999999999999", "99999999999999999999")):
        (tmp_path / "ids").write_text(text)
        done = run_tools("score", "--model", tiny_model, "--ids-file", tmp_path / "ids",
                         "--logits-out", tmp_path / "out", check=False)
        assert done.returncode == 1 and name in done.stderr
        assert not (tmp_path / "out").exists()


# --- convert ---

def test_sharded_checkpoint_converts_to_the_same_model(tiny_model, tmp_path):
    source = copy_golden(tmp_path / "source")
    shard(source)
    run_tools("convert", source, tmp_path / "tiny")
    same = (tmp_path / "tiny" / "weights.safetensors").read_bytes()
    assert same == (tiny_model / "weights.safetensors").read_bytes()


def test_converted_weights_are_plain_safetensors(tiny_model):
    converted = load_file(str(tiny_model / "weights.safetensors"))
    source = load_file(str(GOLDEN / "tiny" / "model.safetensors"))
    assert set(converted) == set(source)
    for name, tensor in source.items():
        assert np.array_equal(converted[name].reshape(-1), tensor.reshape(-1)), name


def test_bf16_is_close_and_half_the_size(tiny_model, tmp_path):
    run_tools("convert", GOLDEN / "tiny", tmp_path / "narrow", "--dtype", "bf16")
    narrow = (tmp_path / "narrow" / "weights.safetensors").stat().st_size
    assert narrow < 0.75 * (tiny_model / "weights.safetensors").stat().st_size
    golden = load_file(str(GOLDEN / "tiny" / "expected.st"))
    logits = score(tmp_path / "narrow", golden["ids"].tolist(), tmp_path / "l.safetensors")
    error = np.abs(logits - golden["logits"]).max()
    assert 0 < error < 0.05 * np.abs(golden["logits"]).max()


def test_delta_net_is_eta_0(tmp_path):
    """The same weights as `delta_net` and as osdn with eta 0 give the same logits."""
    outputs = []
    for name, changes in (("plain", {"model_type": "delta_net", "osdn": None}),
                          ("zero", {"osdn": {"eta": 0.0, "apf": "none"}})):
        source = copy_golden(tmp_path / name)
        edit_config(source, **changes)
        if name == "plain":
            config = json.loads((source / "config.json").read_text())
            del config["osdn"]
            (source / "config.json").write_text(json.dumps(config))
        run_tools("convert", source, tmp_path / f"{name}-model")
        outputs.append(score(tmp_path / f"{name}-model", range(3, 90),
                             tmp_path / f"{name}.safetensors"))
    assert np.array_equal(*outputs)


def convert_fails(source, *names: str) -> None:
    out = source.parent / "out"
    done = run_tools("convert", source, out, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    for name in names:
        assert name in done.stderr, f"{name!r} is not in: {done.stderr}"
    assert not out.exists(), "nothing half-written stays"


def test_convert_lists_all_tensor_problems_at_once(tmp_path):
    source = copy_golden(tmp_path / "source")

    def edit(tensors):
        del tensors["model.layers.0.attn.q_proj.weight"]
        del tensors["model.norm.weight"]
        tensors["model.layers.7.attn.q_proj.weight"] = np.zeros((2, 2), np.float32)
        tensors["model.layers.1.attn.b_proj.weight"] = np.zeros((4, 63), np.float32)

    edit_tensors(source, edit)
    convert_fails(source, "model.layers.0.attn.q_proj.weight", "model.norm.weight",
                  "model.layers.7.attn.q_proj.weight", "model.layers.1.attn.b_proj.weight",
                  "[4,63]", "[4,64]")


def test_convert_names_what_is_wrong(tmp_path):
    convert_fails(tmp_path / "nothing", "nothing")
    source = copy_golden(tmp_path / "source")
    edit_config(source, qk_activation="gelu")
    convert_fails(source, "qk_activation", "gelu")
    edit_config(source, qk_activation="silu", model_type="llama")
    convert_fails(source, "llama")
    (source / "config.json").write_text("{ not json")
    convert_fails(source, "config.json")
    (source / "config.json").unlink()
    convert_fails(source, "config.json")


@pytest.mark.parametrize("size", [0, 7, 100, 5000, -1])
def test_convert_truncated_checkpoint(tmp_path, size):
    source = copy_golden(tmp_path / "source")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    convert_fails(source, "model.safetensors")


def test_convert_refuses_non_finite_weights(tmp_path):
    source = copy_golden(tmp_path / "source")

    def edit(tensors):
        tensors["model.norm.weight"][3] = np.nan

    edit_tensors(source, edit)
    convert_fails(source, "model.norm.weight")


def test_convert_keeps_an_existing_model_unless_told(tiny_model, tmp_path):
    out = tmp_path / "model"
    run_tools("convert", GOLDEN / "tiny", out)
    done = run_tools("convert", GOLDEN / "tiny_apf_gate", out, check=False)
    assert done.returncode == 1 and "--overwrite" in done.stderr
    before = (tiny_model / "weights.safetensors").read_bytes()
    assert (out / "weights.safetensors").read_bytes() == before
    run_tools("convert", GOLDEN / "tiny_apf_gate", out, "--overwrite")
    assert (out / "weights.safetensors").read_bytes() != before


# --- inspect ---

def test_inspect_json(gated_model):
    summary = json.loads(run_tools("inspect", gated_model, "--json", "--tensors", "--verify").stdout)
    assert summary["name"] == "tiny_apf_gate" and summary["dtype"] == "f32"
    assert summary["architecture"]["vocab_size"] == 97
    assert summary["osdn"] == {"eta": 0.05, "eps": 1e-06, "d_min": 0.5, "d_max": 2.0,
                               "apf": "scalar", "apf_anchor": 1.0}
    weights = load_file(str(gated_model / "weights.safetensors"))
    assert {tensor["name"] for tensor in summary["tensors"]} == set(weights)
    assert summary["parameters"] == sum(tensor.size for tensor in weights.values())
    assert summary["tokenizer_pieces"] is None


def test_inspect_verify_finds_a_flipped_byte(tmp_path):
    run_tools("convert", GOLDEN / "tiny", tmp_path / "model")
    weights = tmp_path / "model" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert run_tools("inspect", tmp_path / "model", check=False).returncode == 0
    done = run_tools("inspect", tmp_path / "model", "--verify", check=False)
    assert done.returncode == 1 and "sha256" in done.stderr


# --- generate and chat ---

def test_generate_ids_and_json(tiny_server, tiny):
    expected = tiny.stream([5, 6, 7], max_tokens=12, ignore_eos=True)
    flags = ["--address", tiny_server.address, "--ids", "5 6,7", "--temperature", "0",
             "--max-tokens", "12", "--ignore-eos"]
    assert list(map(int, run_tools("generate", *flags).stdout.split())) == expected.ids
    answer = json.loads(run_tools("generate", *flags, "--json").stdout)
    assert answer["token_ids"] == expected.ids
    assert answer["finish_reason"] == "length"
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 12)
    assert usage["cached_tokens"] <= 3  # the server has read this prompt before


def test_generate_errors(tiny_server, tiny_model):
    address = tiny_server.address
    for flags, code, name in (
            (["--address", address, "--ids", "5", "--temperature", "-1"], 1, "temperature"),
            (["--address", address, "--prompt", "Hello"], 1, "tokenizer"),
            (["--address", "127.0.0.1:1", "--ids", "5"], 1, "127.0.0.1:1"),
            (["--ids", "5"], 2, "--address"),
            (["--address", address, "--nonsense"], 2, "--nonsense")):
        done = run_tools("generate", *flags, check=False)
        assert done.returncode == code and name in done.stderr, (flags, done)


def test_chat_needs_a_chat_template(tiny_server):
    done = run_tools("chat", "--address", tiny_server.address, check=False, input="Hello\n")
    assert done.returncode == 1 and "chat template" in done.stderr


def test_chat_through_a_pipe(text_server):
    """A line in, an answer out; the same seed and history give the same conversation."""
    flags = ["--address", text_server.address, "--max-tokens", "12", "--seed", "3"]
    lines = "hello dog\n\n/reset\nhello dog\n/quit\n"
    done = run_tools("chat", *flags, input=lines)
    answers = done.stdout.split("\n")
    assert answers[0] == answers[1] and answers[0]
    assert "finish" not in done.stdout, "statistics belong to terminals"


def test_chat_remembers_and_reset_forgets(text_server):
    flags = ["--address", text_server.address, "--temperature", "0", "--max-tokens", "12"]
    once = run_tools("chat", *flags, input="the cat\n").stdout
    twice = run_tools("chat", *flags, input="the king\nthe cat\n").stdout
    reset = run_tools("chat", *flags, input="the king\n/reset\nthe cat\n").stdout
    assert reset.endswith(once)
    assert not twice.endswith(once)


def spawn_chat(server, *flags: str) -> pexpect.spawn:
    child = pexpect.spawn(str(TOOLS), ["chat", "--address", server.address, *flags],
                          encoding="utf-8", codec_errors="replace", timeout=60,
                          env={"TERM": "dumb", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"})
    child.expect("Chatting with")
    child.expect("> ")
    return child


def test_chat_on_a_terminal(text_server):
    child = spawn_chat(text_server, "--max-tokens", "8", "--temperature", "0")
    child.sendline("hello")
    child.expect(r"\[\d+ prompt tokens, \d+ new.*finish: \w+")
    child.sendline("/nonsense")
    child.expect("unknown command /nonsense")
    child.sendline("/help")
    child.expect("/reset")
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(text_server):
    child = spawn_chat(text_server, "--max-tokens", "1000000", "--min-tokens", "1000000")
    child.sendline("hello")
    child.expect("hello\r\n")  # the terminal's echo
    child.expect(r"\S")  # the answer has begun
    child.sendintr()
    child.expect(r"\[stopped\]")
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0

    child = spawn_chat(text_server)
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_output_into_a_closed_pipe_is_no_crash(tiny_server):
    command = (f"{TOOLS} generate --address {tiny_server.address} --ids 5 --max-tokens 20000 "
               "--ignore-eos | head -c 10")
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True,
                          timeout=120)
    assert len(done.stdout) == 10 and done.returncode not in (134, 139)
