"""Saved states in a real Redis: shared by servers, bounded, and what happens when it is gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

import grpc
import pytest
from harness import Client, run_server, wait_until
from test_states import States

Code = grpc.StatusCode
PASSWORD = "open sesame"


class Redis:
    """redis-server on a port of its own, everything acknowledged in its log first."""

    def __init__(self, folder) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.process = None
        (folder / "password").write_text(PASSWORD + "\n")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir",
             str(self.folder), "--requirepass", PASSWORD, "--appendonly", "yes",
             "--appendfsync", "always", "--save", ""],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.ask("PING") == "PONG", "Redis answers")

    def ask(self, *command: str) -> str:
        return subprocess.run(["redis-cli", "-p", str(self.port), "--no-auth-warning", *command],
                              env={**os.environ, "REDISCLI_AUTH": PASSWORD},
                              capture_output=True, text=True).stdout.strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def flags(self) -> list[str]:
        return ["--state-redis-address", self.address, "--state-redis-password-file",
                str(self.folder / "password"), "--state-redis-timeout", "500ms"]


@pytest.fixture
def redis(tmp_path):
    running = Redis(tmp_path)
    yield running
    running.kill()


def test_any_server_goes_on_with_any_state(servers, tiny_model, redis):
    one, two = (States(servers(tiny_model, *redis.flags).channel()) for _ in range(2))
    sampling = {"temperature": 1, "seed": 5}
    whole = one.generate([5, 6], sampling=sampling, max_tokens=40, ignore_eos=True)
    tokens, state_id = [], ""
    for turn in range(4):
        client = (one, two)[turn % 2]
        state = {"state_id": state_id, "replace": True} if state_id else {}
        answer = client.go(None if state_id else [5, 6], {**state, "save_state_as": f"turn {turn}"},
                           sampling=sampling, max_tokens=10)
        tokens += answer.choices[0].token_ids
        state_id = answer.state.state_id
    assert tokens == list(whole.choices[0].token_ids)
    assert [state.label for state in one.list()] == ["turn 3"]  # the others were replaced
    assert two.export(state_id) == one.export(state_id)
    fork = two.states.ForkState(two.session.ForkStateRequest(state_id=state_id, label="b")).state
    assert fork.parent_id == state_id
    assert [state.state_id for state in one.list(page_size=1)] == sorted([state_id, fork.state_id])
    for client in (one, two):
        client.states.DeleteState(client.session.DeleteStateRequest(state_id=client.list()[0].state_id))
    assert one.list() == two.list() == []
    assert redis.ask("HGET", "osdn:{osdn}:usage", "bytes") == "0"
    assert redis.ask("KEYS", "*").split() == ["osdn:{osdn}:usage"]


def test_quota_and_expiry_hold_over_all_servers(servers, tiny_model, redis):
    flags = [*redis.flags, "--state-max-count", "3", "--state-redis-prefix", "mine"]
    one, two = (States(servers(tiny_model, *flags).channel()) for _ in range(2))
    for number, client in enumerate((one, two, one)):
        client.go([5], {"save_state_as": str(number), "ttl_seconds": 2 if number else 0})
    for client in (one, two):
        with pytest.raises(grpc.RpcError) as error:
            client.go([5], {"save_state_as": "one too many"})
        assert error.value.code() == Code.RESOURCE_EXHAUSTED
        assert "at most 3" in error.value.details()
    wait_until(lambda: len(two.list()) == 1, "two states expire")
    two.go([5], {"save_state_as": "there is room again"})
    assert {state.label for state in one.list()} == {"0", "there is room again"}


def test_redis_gone_is_told_and_nothing_acknowledged_is_lost(servers, tiny_model, redis):
    server = servers(tiny_model, *redis.flags)
    client = States(server.channel())
    kept = [client.go([5, n], {"save_state_as": str(n)}, max_tokens=3).state.state_id
            for n in range(5)]
    redis.kill()
    for call in (lambda: client.go(None, {"state_id": kept[0]}), client.list,
                 lambda: client.go([5], {"save_state_as": "x"}), lambda: client.export(kept[0])):
        start = time.monotonic()
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert error.value.code() == Code.UNAVAILABLE
        assert "state store cannot be reached" in error.value.details()
        assert redis.address not in error.value.details()
        assert time.monotonic() - start < 10
    assert client.generate([5], max_tokens=3).usage.completion_tokens
    capacity = client.stub.GetCapacity(client.pb.GetCapacityRequest())
    assert (capacity.running, capacity.slots_used, capacity.state_transit_bytes) == (0, 0, 0)
    redis.start()
    wait_until(lambda: "answers again" in server.log, "the server finds Redis again")
    assert sorted(state.state_id for state in client.list()) == sorted(kept)
    for state_id in kept:
        assert client.go(None, {"state_id": state_id}, max_tokens=2).usage.completion_tokens == 2
    assert server.log.count("cannot be reached") == 1


def test_a_drained_answer_goes_on_in_another_server(servers, tiny_model, redis):
    limit = ["--max-tokens-limit", "100000000"]
    first, second = (servers(tiny_model, *redis.flags, *limit, "--drain-timeout", "100ms")
                     for _ in range(2))
    client = Client(first.channel())
    call = client.start([5, 6], max_tokens=100_000_000, ignore_eos=True)
    tokens = list(next(call).delta.token_ids)
    first.signal(signal.SIGINT)
    for frame in call:
        tokens += frame.delta.token_ids
    assert frame.finished.finish_reason == client.pb.FINISH_REASON_DRAINED
    other = States(second.channel())
    rest = other.go(None, {"state_id": frame.finished.state.state_id}, max_tokens=20)
    whole = other.generate([5, 6], max_tokens=len(tokens) + 20, ignore_eos=True)
    assert tokens + list(rest.choices[0].token_ids) == list(whole.choices[0].token_ids)
    assert first.wait_exit() == 0


def test_a_wrong_password_or_two_places_are_told_at_the_start(tiny_model, redis, tmp_path):
    (tmp_path / "wrong").write_text("wrong\n")
    flags = ["--model", tiny_model, "--grpc-address", "127.0.0.1:0", "--state-redis-address",
             redis.address]
    done = run_server(*flags, "--state-redis-password-file", tmp_path / "wrong")
    assert done.returncode == 1 and "WRONGPASS" in done.stderr
    assert "wrong\n" not in done.stderr
    done = run_server(*flags, "--state-dir", tmp_path / "states")
    assert done.returncode == 2 and "--state-dir" in done.stderr
