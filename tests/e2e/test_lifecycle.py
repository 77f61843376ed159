"""Start, health, reflection, drain, exit codes."""

from __future__ import annotations

import signal
import socket
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from harness import PATIENCE, Client, collect, run_server, run_tools, wait_until
from test_states import States

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "osdn.v1.InferenceService"


def reflect(channel, **query):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(**query)
    return next(iter(stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE)))


def test_health_of_every_service(tiny_server):
    assert tiny_server.health() == SERVING
    assert tiny_server.health(SERVICE) == SERVING
    with pytest.raises(grpc.RpcError) as error:
        tiny_server.health("no.such.Service")
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_lists_and_describes(tiny_server):
    channel = tiny_server.channel()
    listed = reflect(channel, list_services="").list_services_response.service
    assert {SERVICE, "grpc.health.v1.Health"} <= {service.name for service in listed}
    answer = reflect(channel, file_containing_symbol=SERVICE)
    assert answer.file_descriptor_response.file_descriptor_proto


def test_sigterm_drains_and_tells_health(servers, tiny_model):
    server = servers(tiny_model, "--max-tokens-limit", "100000", "--drain-propagation", "1s")
    client = Client(server.channel())
    call = client.start([5, 6], max_tokens=3000, ignore_eos=True)
    next(call)

    seen = []
    watch = health_pb2_grpc.HealthStub(server.channel()).Watch(
        health_pb2.HealthCheckRequest(service=SERVICE))

    def watch_health() -> None:
        try:
            seen.extend(update.status for update in watch)
        except grpc.RpcError:
            pass  # the server is gone

    watcher = threading.Thread(target=watch_health, daemon=True)
    watcher.start()
    wait_until(lambda: seen == [SERVING], "the watch says SERVING")
    server.signal(signal.SIGTERM)
    wait_until(lambda: seen == [SERVING, NOT_SERVING], "the watch says NOT_SERVING")
    # During the propagation a new call is still taken, and the running stream comes to its end.
    assert len(client.stream([7], max_tokens=3, ignore_eos=True).ids) == 3
    result = collect(call)
    assert len(result.ids) >= 2999 and result.finished.usage.completion_tokens == 3000
    assert server.wait_exit() == 0
    watcher.join(PATIENCE)


def test_drain_refuses_new_calls_and_finishes_old_ones(servers, tiny_model):
    server = servers(tiny_model, "--max-tokens-limit", "100000")
    client = Client(server.channel())
    call = client.start([5, 6], max_tokens=20_000, ignore_eos=True)
    tokens = len(next(call).delta.token_ids)
    server.signal(signal.SIGINT)  # no propagation; the unread stream keeps the drain going
    wait_until(lambda: "may finish within" in server.log, "the drain has begun")

    def refusal():
        try:
            client.generate([7], max_tokens=1, timeout=PATIENCE)
        except grpc.RpcError as error:
            return error
        return None

    error = wait_until(refusal, "a new call is refused")
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    result = collect(call)
    assert tokens + len(result.ids) == 20_000
    assert server.wait_exit() == 0


def test_drain_timeout_ends_what_is_left(servers, tiny_model):
    server = servers(tiny_model, "--max-tokens-limit", "100000000", "--drain-timeout", "300ms")
    call = Client(server.channel()).start([5, 6], max_tokens=100_000_000, ignore_eos=True)
    next(call)
    server.signal(signal.SIGINT)
    with pytest.raises(grpc.RpcError) as error:
        for _ in call:
            pass
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.wait_exit() == 0


def test_drained_answers_go_on_in_the_next_server(servers, tiny_model, tmp_path):
    """To the token; for streams, unary calls and several choices, asked for a state or not."""
    options = ["--state-dir", tmp_path / "states", "--max-tokens-limit", "100000000"]
    server = servers(tiny_model, *options, "--drain-timeout", "100ms")
    client = States(server.channel())
    endless = {"max_tokens": 100_000_000, "ignore_eos": True}
    ways = [{"temperature": 1, "seed": seed, "presence_penalty": 0.5, "penalty_window": 64}
            for seed in range(3)]
    streams = [client.start([5, 6], sampling=way, **endless) for way in ways]
    unary = client.stub.Generate.future(
        client.request([7], sampling={**ways[0], "n": 2}, **endless))
    got = [list(collect_some(stream, 20)) for stream in streams]
    wait_until(lambda: client.stub.GetCapacity(client.pb.GetCapacityRequest()).running == 5,
               "both choices run")
    server.signal(signal.SIGINT)
    states = []
    for stream, tokens in zip(streams, got):
        rest = collect(stream)
        tokens.extend(rest.ids)
        assert rest.finished.finish_reason == client.pb.FINISH_REASON_DRAINED
        states.append(rest.finished.state.state_id)
    for choice in unary.result().choices:
        assert choice.finish_reason == client.pb.FINISH_REASON_DRAINED
        got.append(list(choice.token_ids))
        states.append(choice.state.state_id)
    assert server.wait_exit() == 0

    client = States(servers(tiny_model, *options).channel())
    prompts = [[5, 6]] * 3 + [[7]] * 2
    for number, (prompt, tokens, state_id) in enumerate(zip(prompts, got, states)):
        way = (ways + [ways[0]] * 2)[number]
        choice = number - 3 if number >= 3 else 0
        whole = client.generate(prompt, sampling={**way, "n": choice + 1},
                                max_tokens=len(tokens) + 30, ignore_eos=True).choices[choice]
        rest = client.go(None, {"state_id": state_id}, sampling=way, max_tokens=30)
        assert tokens + list(rest.choices[0].token_ids) == list(whole.token_ids)


def test_a_drained_state_in_memory_goes_to_who_asked_for_it(servers, tiny_model):
    options = ["--max-tokens-limit", "100000000"]
    server = servers(tiny_model, *options, "--drain-timeout", "100ms")
    client = States(server.channel())
    request = client.request([5, 6], max_tokens=100_000_000, ignore_eos=True)
    request.state.return_state = True
    request.state.save_state_as = "of no use"
    call = client.stub.GenerateStream(request)
    tokens = list(collect_some(call, 20))
    server.signal(signal.SIGINT)
    rest = collect(call)
    tokens.extend(rest.ids)
    assert rest.finished.finish_reason == client.pb.FINISH_REASON_DRAINED
    assert not rest.finished.HasField("state")
    client = States(servers(tiny_model, *options).channel())
    more = client.go(None, {"state_blob": rest.finished.state_blob}, max_tokens=9)
    whole = client.generate([5, 6], max_tokens=len(tokens) + 9, ignore_eos=True)
    assert tokens + list(more.choices[0].token_ids) == list(whole.choices[0].token_ids)


def collect_some(call, count: int):
    """The first ids of a stream."""
    seen = 0
    while seen < count:
        for token in next(call).delta.token_ids:
            seen += 1
            yield token


def test_second_signal_ends_at_once(servers, tiny_model):
    server = servers(tiny_model, "--max-tokens-limit", "100000000", "--drain-timeout", "1h")
    call = Client(server.channel()).start([5, 6], max_tokens=100_000_000, ignore_eos=True)
    next(call)
    server.signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM received" in server.log, "the first signal is seen")
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 130


def test_idle_server_ends_with_0_on_both_signals(servers, tiny_model):
    for number in (signal.SIGINT, signal.SIGTERM):
        server = servers(tiny_model, "--drain-propagation", "0s")
        server.signal(number)
        assert server.wait_exit() == 0


def test_port_in_use(servers, tiny_model):
    first = servers(tiny_model)
    done = run_server("--model", tiny_model, "--grpc-address", first.address)
    assert done.returncode == 1
    assert first.address in done.stderr and "in use" in done.stderr.lower()
    assert first.health() == SERVING


def test_port_held_by_something_else(tiny_model):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        done = run_server("--model", tiny_model, "--grpc-address", address)
    assert done.returncode == 1 and address in done.stderr


def test_log_names_model_state_and_options_but_no_prompt(servers, tiny_model):
    server = servers(tiny_model, "--log-level", "debug")
    client = Client(server.channel())
    client.generate([91, 92, 93, 94, 95], max_tokens=2, ignore_eos=True)
    state = client.stub.GetModel(client.pb.GetModelRequest()).state_bytes_per_sequence
    assert "model tiny" in server.log and f"{state} bytes" in server.log
    assert "scheduler.max_slots = 32 (default)" in server.log
    assert '"prompt_tokens":5' in wait_until(lambda: server.log, "a log")
    assert "91, 92" not in server.log and "91 92" not in server.log


def test_health_command(servers, tiny_model):
    server = servers(tiny_model)
    address = server.address
    assert run_tools("health", "--address", address).returncode == 0
    server.stop()
    assert run_tools("health", "--address", address, check=False).returncode == 1


def test_version_and_help():
    version = run_server("--version")
    assert version.returncode == 0 and version.stdout.startswith("osdn-server 0.1.0")
    text = run_server("--help")
    assert text.returncode == 0
    for flag in ("--model", "--grpc-address", "--config", "--backend", "--max-slots"):
        assert flag in text.stdout
