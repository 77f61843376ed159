"""Saved states: what goes on from them, who may, and that no kill loses or spoils one."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from harness import Client, Server, run_tools, violations, wait_until

Code = grpc.StatusCode
# The long version: OSDN_KILLS=200.
KILLS = int(os.environ.get("OSDN_KILLS", "12"))


class States(Client):
    """A client with the state service beside the inference service."""

    def __init__(self, channel: grpc.Channel) -> None:
        super().__init__(channel)
        from osdn.v1 import session_pb2, session_pb2_grpc

        self.session = session_pb2
        self.states = session_pb2_grpc.StateServiceStub(channel)

    def go(self, prompt, state: dict, **kwargs):
        """Generate with state options; `prompt` may be None."""
        request = self.request(prompt or [1], **{"ignore_eos": True, **kwargs})
        if prompt is None:
            request.ClearField("prompt")
        request.state.CopyFrom(self.pb.StateOptions(**state))
        return self.stub.Generate(request, timeout=60)

    def save(self, ids, **state):
        prompt = self.pb.Prompt(tokens=self.pb.TokenIds(ids=ids))
        return self.states.SaveState(self.session.SaveStateRequest(
            prompt=prompt, state=self.pb.StateOptions(**state)), timeout=60)

    def export(self, state_id: str) -> bytes:
        pieces = self.states.ExportState(self.session.ExportStateRequest(state_id=state_id))
        return b"".join(piece.data for piece in pieces)

    def import_(self, blob: bytes, label: str = "", piece: int = 1000):
        pieces = [self.session.ImportStateRequest(label=label, data=blob[at:at + piece])
                  for at in range(0, max(len(blob), 1), piece)]
        return self.states.ImportState(iter(pieces)).state

    def list(self, page_size: int = 0) -> list:
        found, token = [], ""
        while True:
            page = self.states.ListStates(
                self.session.ListStatesRequest(page_size=page_size, page_token=token))
            found.extend(page.states)
            token = page.next_page_token
            if not token:
                return found


def code_of(function, *args, **kwargs):
    with pytest.raises(grpc.RpcError) as error:
        function(*args, **kwargs)
    return error.value.code()


@pytest.fixture
def tiny(tiny_server) -> States:
    return States(tiny_server.channel())


def ids(answer) -> list[int]:
    return list(answer.choices[0].token_ids)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1, "seed": 5, "top_p": .9}])
def test_parts_are_the_whole_by_id_and_by_blob(tiny, sampling):
    whole = ids(tiny.generate([5, 6, 7], sampling=sampling, max_tokens=40, ignore_eos=True))
    rest = {k: v for k, v in sampling.items() if k != "seed"}  # the state goes on with its own
    first = tiny.go([5, 6, 7], {"save_state_as": "a", "return_state": True}, sampling=sampling,
                    max_tokens=15)
    assert first.state.label == "a" and first.state.bytes == len(first.state_blob)
    for source in ({"state_id": first.state.state_id}, {"state_blob": first.state_blob}):
        second = tiny.go(None, source, sampling=rest, max_tokens=25)
        assert ids(first) + ids(second) == whole
        assert second.usage.cached_tokens == first.state.position == 17
        assert second.params.sampling.seed == first.params.sampling.seed


def test_restart_resumes_bit_for_bit(servers, tiny_model, tmp_path):
    flags = ["--state-dir", tmp_path / "states"]
    server = servers(tiny_model, *flags)
    client = States(server.channel())
    whole = ids(client.generate([9, 8], max_tokens=30, ignore_eos=True))
    first = client.go([9, 8], {"save_state_as": ""}, max_tokens=11)
    server.stop()
    client = States(servers(tiny_model, *flags).channel())
    second = client.go(None, {"state_id": first.state.state_id}, max_tokens=19)
    assert ids(first) + ids(second) == whole
    assert [state.state_id for state in client.list()] == [first.state.state_id]


def test_stream_tells_the_state(tiny):
    request = tiny.request([5], max_tokens=3, ignore_eos=True)
    request.state.save_state_as = "streamed"
    finished = [frame.finished for frame in tiny.stub.GenerateStream(request)
                if frame.HasField("finished")][0]
    assert finished.state.label == "streamed"
    assert tiny.states.GetState(tiny.session.GetStateRequest(
        state_id=finished.state.state_id)).state == finished.state


def test_save_fork_list_get_delete(tiny):
    saved = tiny.save([5] * 100, save_state_as="prompt")
    assert saved.usage.prompt_tokens == 100 and saved.usage.completion_tokens == 0
    assert saved.state.position == 100 and saved.state.label == "prompt"
    fork = tiny.states.ForkState(tiny.session.ForkStateRequest(
        state_id=saved.state.state_id, label="fork")).state
    assert fork.state_id != saved.state.state_id and fork.parent_id == saved.state.state_id
    listed = {state.state_id for state in tiny.list(page_size=1)}
    assert {saved.state.state_id, fork.state_id} <= listed
    tiny.states.DeleteState(tiny.session.DeleteStateRequest(state_id=saved.state.state_id))
    get = tiny.session.GetStateRequest(state_id=saved.state.state_id)
    assert code_of(tiny.states.GetState, get) == Code.NOT_FOUND
    assert code_of(tiny.go, None, {"state_id": saved.state.state_id}, max_tokens=1) == Code.NOT_FOUND
    plain = ids(tiny.generate([5] * 100, max_tokens=9, ignore_eos=True))
    assert ids(tiny.go(None, {"state_id": fork.state_id}, max_tokens=9)) == plain


def test_export_and_import_between_servers(tiny, servers, tiny_model, gated_model):
    state = tiny.save([3, 4, 5]).state
    blob = tiny.export(state.state_id)
    other = States(servers(tiny_model).channel())
    imported = other.import_(blob, "shipped")
    assert imported.label == "shipped" and imported.position == 3
    answer = other.go(None, {"state_id": imported.state_id}, max_tokens=9)
    assert ids(answer) == ids(tiny.generate([3, 4, 5], max_tokens=9, ignore_eos=True))
    # Another model refuses it, and so does anyone once it is damaged.
    stranger = States(servers(gated_model).channel())
    assert code_of(stranger.import_, blob) == Code.FAILED_PRECONDITION
    assert code_of(stranger.go, None, {"state_blob": blob}, max_tokens=1) == Code.FAILED_PRECONDITION
    flipped = bytearray(blob)
    flipped[random.randrange(8, len(blob))] ^= 1 << random.randrange(8)
    assert code_of(other.import_, bytes(flipped)) == Code.DATA_LOSS
    assert code_of(other.import_, blob[:-1]) == Code.DATA_LOSS
    assert code_of(other.import_, b"junk") == Code.INVALID_ARGUMENT
    assert code_of(other.import_, b"") == Code.INVALID_ARGUMENT
    assert code_of(other.import_, blob * 200, piece=1 << 20) == Code.INVALID_ARGUMENT


def test_a_chat_sends_only_the_new_message(bundled_server):
    client = States(bundled_server.channel())
    first = client.go([("user", "My locker number is 4817.")], {"save_state_as": ""},
                      ignore_eos=False, max_tokens=60)
    asked = {"state_id": first.state.state_id, "save_state_as": ""}
    second = client.go([("user", "What is my locker number?")], asked, ignore_eos=False,
                       max_tokens=60)
    assert "4817" in second.choices[0].text
    assert second.usage.cached_tokens == first.state.position
    assert second.state.parent_id == first.state.state_id
    # The state holds exactly the chat: its prompt with the whole history has as many tokens.
    history = [("user", "My locker number is 4817."), ("assistant", first.choices[0].text),
               ("user", "What is my locker number?")]
    whole = client.generate(history, max_tokens=60)
    assert second.usage.prompt_tokens == whole.usage.prompt_tokens
    assert second.choices[0].text == whole.choices[0].text
    # Undo: go on from the turn before as if the second had never been.
    undone = client.go([("user", "What is my locker number?")],
                       {"state_id": second.state.parent_id}, ignore_eos=False, max_tokens=60)
    assert undone.choices[0].text == second.choices[0].text


def test_replace_keeps_one_state_of_a_session(servers, tiny_model):
    client = States(servers(tiny_model).channel())
    state = client.go([5], {"save_state_as": ""}, max_tokens=2).state
    for _ in range(5):
        state = client.go([6], {"state_id": state.state_id, "save_state_as": "", "replace": True},
                          max_tokens=2).state
        assert [kept.state_id for kept in client.list()] == [state.state_id]


def test_quota_and_ttl(servers, tiny_model):
    client = States(servers(tiny_model, "--state-max-count", "2").channel())
    client.save([5], save_state_as="", ttl_seconds=1)
    kept = client.save([5]).state
    assert code_of(client.save, [5]) == Code.RESOURCE_EXHAUSTED
    assert code_of(client.go, [5], {"save_state_as": ""}, max_tokens=1) == Code.RESOURCE_EXHAUSTED
    wait_until(lambda: [s.state_id for s in client.list()] == [kept.state_id], "one expires")
    client.save([5])
    assert code_of(client.save, [5]) == Code.RESOURCE_EXHAUSTED


def test_expired_states_go_by_themselves(servers, tiny_model, tmp_path):
    directory = tmp_path / "states"
    client = States(servers(tiny_model, "--state-dir", directory).channel())
    client.save([5], ttl_seconds=1)
    assert list(directory.glob("*.state"))

    def kept() -> int:
        capacity = client.stub.GetCapacity(client.pb.GetCapacityRequest())
        return capacity.saved_states + capacity.saved_state_bytes

    wait_until(lambda: kept() == 0, "nothing is kept")
    assert not list(directory.glob("*.state"))


def test_a_directory_has_one_server(servers, tiny_model, tmp_path):
    flags = ["--state-dir", tmp_path / "states"]
    first = servers(tiny_model, *flags)
    second = servers(tiny_model, *flags, serving=False)
    assert second.wait_exit() == 1
    assert str(tmp_path / "states") in second.log
    assert f"in use by process {first.process.pid}" in second.log
    # A killed server leaves no lock behind.
    first.signal(signal.SIGKILL)
    first.process.wait()
    servers(tiny_model, *flags)


def test_clients_hear_nothing_of_the_file_system(servers, tiny_model, tmp_path):
    directory = tmp_path / "states"
    server = servers(tiny_model, "--state-dir", directory)
    client = States(server.channel())
    state_id = client.save([5]).state.state_id
    file = directory / f"{state_id}.state"
    file.unlink()
    file.mkdir()  # can neither be read nor removed as a file
    delete = client.session.DeleteStateRequest(state_id=state_id)
    for call, arguments in ((client.export, [state_id]), (client.states.DeleteState, [delete]),
                            (client.go, [None, {"state_id": state_id}])):
        with pytest.raises(grpc.RpcError) as error:
            call(*arguments)
        assert error.value.code() == Code.INTERNAL
        assert str(tmp_path) not in error.value.details()
    wait_until(lambda: str(file) in server.log, "the log says what it was")
    # What could not be deleted is not forgotten.
    assert [state.state_id for state in client.list()] == [state_id]
    file.rmdir()
    client.states.DeleteState(delete)
    assert not client.list()


def test_states_in_transit_are_bounded(servers, tiny_model):
    """A state of tiny_model has some kilobytes; the server may hold two at a time."""
    plain = States(servers(tiny_model).channel())
    blob = plain.export(plain.save([5, 6]).state.state_id)
    limit = 2 * len(blob) + 100
    flags = ["--state-max-transit-bytes", str(limit), "--max-tokens-limit", "100000000"]
    client = States(servers(tiny_model, *flags).channel())

    def capacity():
        return client.stub.GetCapacity(client.pb.GetCapacityRequest())

    assert capacity().max_state_transit_bytes == limit
    state = client.import_(blob)
    # Two requests that will leave states hold the places of both.
    holders = []
    for number in (7, 8):
        request = client.request([number], max_tokens=100_000_000, ignore_eos=True)
        request.state.save_state_as = ""
        holders.append(client.stub.GenerateStream(request))
        next(holders[-1])
    assert capacity().state_transit_bytes > limit // 2
    refused = [(client.import_, [blob]), (client.export, [state.state_id]), (client.save, [[5]]),
               (client.go, [[5], {"return_state": True}]),
               (client.go, [None, {"state_id": state.state_id}]),
               (client.go, [None, {"state_blob": blob}])]
    for call, arguments in refused:
        with pytest.raises(grpc.RpcError) as error:
            call(*arguments)
        assert error.value.code() == Code.RESOURCE_EXHAUSTED
        assert "state.max_transit_bytes" in error.value.details()
        assert str(limit) in error.value.details()
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in rpc_status.from_call(error.value).details)
    # Requests without states are served all the same.
    assert len(ids(client.generate([5], max_tokens=3, ignore_eos=True))) == 3
    for holder in holders:
        holder.cancel()
    wait_until(lambda: capacity().state_transit_bytes == 0, "nothing is held")
    assert client.export(state.state_id) == blob
    # An import that stalls holds what it has sent so far.
    sent, go_on = threading.Event(), threading.Event()

    def pieces():
        yield client.session.ImportStateRequest(data=blob[:-10])
        sent.set()
        go_on.wait(60)
        yield client.session.ImportStateRequest(data=blob[-10:])

    stalled = client.states.ImportState.future(pieces())
    sent.wait(60)
    wait_until(lambda: capacity().state_transit_bytes == len(blob) - 10, "it is held")
    go_on.set()
    assert stalled.result().state.position == state.position
    assert capacity().state_transit_bytes == 0


def test_inspect_prints_nothing_a_terminal_would_obey(tiny, tmp_path):
    blob = bytearray(tiny.export(tiny.save([5]).state.state_id))
    start = blob.index(b'"model_id":"') + len(b'"model_id":"')
    hostile = "\\u001b]0;owned\\u0007\u009b".encode()
    blob[start:start + len(hostile)] = hostile
    blob[-32:] = hashlib.sha256(blob[:-32]).digest()
    (tmp_path / "hostile.state").write_bytes(blob)
    for flags in ([], ["--json"]):
        shown = run_tools("state", "inspect", *flags, tmp_path / "hostile.state").stdout
        assert "owned" in shown
        assert all(" " <= character <= "~" or character == "\n" for character in shown)


def test_signed_states_only(servers, tiny_model, tmp_path):
    (tmp_path / "key").write_bytes(os.urandom(32))
    signing = States(servers(tiny_model, "--state-key-file", tmp_path / "key").channel())
    plain = States(servers(tiny_model).channel())
    signed = signing.export(signing.save([5]).state.state_id)
    unsigned = plain.export(plain.save([5]).state.state_id)
    signing.import_(signed)
    plain.import_(signed)
    assert code_of(signing.import_, unsigned) == Code.PERMISSION_DENIED
    refused = code_of(signing.go, None, {"state_blob": unsigned}, max_tokens=1)
    assert refused == Code.PERMISSION_DENIED


def test_nonsense_is_named(tiny):
    def fields(state, **kwargs):
        with pytest.raises(grpc.RpcError) as error:
            tiny.go([5], state, max_tokens=1, **kwargs)
        assert error.value.code() == Code.INVALID_ARGUMENT
        return violations(error.value)

    assert "state.replace" in fields({"replace": True})
    assert "state.ttl_seconds" in fields({"ttl_seconds": 5})
    assert "state.save_state_as" in fields({"save_state_as": "x" * 257})
    for name in ("../../etc/passwd", "st-0", "", "\u0000"):
        assert code_of(tiny.go, [5], {"state_id": name}, max_tokens=1) == Code.NOT_FOUND
    assert code_of(tiny.go, None, {}, max_tokens=1) == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_many_parked_sessions_resume_exactly(servers, tiny_model, tmp_path, store):
    """1,000 with OSDN_SESSIONS=1000. Those on disk outlive the server that parked them."""
    count = int(os.environ.get("OSDN_SESSIONS", "100"))
    directory = "memory" if store == "memory" else tmp_path / "states"
    flags = ["--state-dir", directory, "--state-max-count", "2000"]
    server = servers(tiny_model, *flags)
    client = States(server.channel())
    parked = [client.go([3 + i % 90, 3 + i // 90], {"save_state_as": str(i)}, max_tokens=3)
              for i in range(count)]
    if store == "disk":
        server.stop()
        client = States(servers(tiny_model, *flags).channel())
    assert len(client.list()) == count
    for i, first in enumerate(parked):
        rest = client.go(None, {"state_id": first.state.state_id}, max_tokens=3)
        whole = client.generate([3 + i % 90, 3 + i // 90], max_tokens=6, ignore_eos=True)
        assert ids(first) + ids(rest) == ids(whole), i


def test_kill_9_loses_and_spoils_nothing(tiny_model, tmp_path):
    """Kills the server at random moments of saving. What was acknowledged is there and whole."""
    rng = random.Random()
    flags = ["--state-dir", str(tmp_path / "states"), "--state-max-count", "1000000",
             "--state-max-bytes", str(1 << 40)]
    saved: dict[str, int] = {}
    for _ in range(KILLS):
        server = Server(tiny_model, *flags).wait_serving()
        assert "not a whole state file" not in server.log
        client = States(server.channel())
        listed = {state.state_id: state.position for state in client.list(page_size=1000)}
        assert saved.items() <= listed.items(), "an acknowledged state is gone"
        for state_id in rng.sample(sorted(listed), min(10, len(listed))):
            client.go(None, {"state_id": state_id}, max_tokens=1)  # DATA_LOSS if it were spoilt
        lock = threading.Lock()

        def keep_saving(client=client, lock=lock) -> None:
            while True:
                try:
                    state = client.save([rng.randrange(3, 97) for _ in range(rng.randrange(1, 9))])
                except grpc.RpcError:
                    return
                with lock:
                    saved[state.state.state_id] = state.state.position

        threads = [threading.Thread(target=keep_saving) for _ in range(3)]
        for thread in threads:
            thread.start()
        threads[0].join(rng.uniform(0.01, 0.15))
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        for thread in threads:
            thread.join()
        server.stop()
    assert len(saved) >= KILLS // 2
