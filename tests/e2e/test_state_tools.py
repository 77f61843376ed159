"""osdn-tools state and compile-prompt, and a server that takes what they made."""

from __future__ import annotations

import json
import os

from harness import Client, run_tools


def compile_prompt(model, path, *arguments):
    return run_tools("compile-prompt", "--model", model, "--out", path, *arguments)


def test_a_compiled_prompt_goes_on_like_the_prompt(bundled, bundled_model, tmp_path):
    path = tmp_path / "prompt.state"
    done = compile_prompt(bundled_model, path, "--prompt", "Once upon a time")
    assert str(path) in done.stderr
    request = bundled.request([1], max_tokens=12)
    request.ClearField("prompt")
    request.state.state_blob = path.read_bytes()
    assert (bundled.stub.Generate(request).choices[0].token_ids
            == bundled.generate("Once upon a time", max_tokens=12).choices[0].token_ids)
    info = json.loads(run_tools("state", "inspect", "--json", path).stdout)
    model = bundled.stub.GetModel(bundled.pb.GetModelRequest())
    assert info["model_id"] == model.model_id and info["bytes"] == path.stat().st_size
    assert info["state_bytes"] == model.state_bytes_per_sequence and not info["signed"]
    assert "position: " in run_tools("state", "inspect", path).stdout


def test_a_compiled_system_message_begins_chats(bundled, bundled_model, tmp_path):
    if "system" not in bundled.stub.GetModel(bundled.pb.GetModelRequest()).chat_roles:
        return
    path = tmp_path / "system.state"
    compile_prompt(bundled_model, path, "--system", "You are a helpful assistant.")
    request = bundled.request([("user", "Hello!")], max_tokens=20)
    request.state.state_blob = path.read_bytes()
    short = bundled.stub.Generate(request)
    whole = bundled.generate([("system", "You are a helpful assistant."), ("user", "Hello!")],
                             max_tokens=20)
    assert short.choices[0].text == whole.choices[0].text
    assert short.usage.prompt_tokens == whole.usage.prompt_tokens


def test_verify_tells_whole_from_damaged_and_foreign(bundled_model, tiny_model, servers, tmp_path):
    path = tmp_path / "a.state"
    compile_prompt(bundled_model, path, "--prompt", "Hello")
    assert "whole" in run_tools("state", "verify", path, "--model", bundled_model).stdout
    foreign = run_tools("state", "verify", path, "--model", tiny_model, check=False)
    assert foreign.returncode == 1 and "model id" in foreign.stderr
    (tmp_path / "key").write_bytes(os.urandom(32))
    unsigned = run_tools("state", "verify", path, "--model", bundled_model, "--key-file",
                         tmp_path / "key", check=False)
    assert unsigned.returncode == 1 and "not signed" in unsigned.stderr
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)
    for command in (["inspect"], ["verify", "--model", bundled_model]):
        done = run_tools("state", command[0], path, *command[1:], check=False)
        assert done.returncode == 1 and str(path) in done.stderr and "altered" in done.stderr


def test_files_of_a_servers_store_can_be_inspected(servers, tiny_model, tmp_path):
    client = Client(servers(tiny_model, "--state-dir", tmp_path / "states").channel())
    request = client.request([5, 6], max_tokens=2, ignore_eos=True)
    request.state.save_state_as = "x"
    saved = client.stub.Generate(request).state
    path = tmp_path / "states" / f"{saved.state_id}.state"
    info = json.loads(run_tools("state", "inspect", "--json", path).stdout)
    assert info["position"] == saved.position == 3
