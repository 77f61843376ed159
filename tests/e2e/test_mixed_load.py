"""Requests of every kind through 64 streams, three in ten cancelled: right answers, nothing left.

Prompts that share beginnings, states that are left, resumed and deleted, and readers that do not
read, whose slots everybody else runs in.

Short here; OSDN_LOAD_REQUESTS=10000 is the long version.
"""

from __future__ import annotations

import os
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from harness import Client, collect, wait_until
from test_states import States

REQUESTS = int(os.environ.get("OSDN_LOAD_REQUESTS", "400"))
STREAMS = 64
SLOTS = 8
SILENT_TOKENS = 1500  # more than all buffers between the engine and a reader that does not read hold


def resident_bytes(server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024


def make_kinds(client: Client, rng: random.Random) -> list:
    """Some dozens of different requests, made often: every answer is known beforehand."""
    kinds = []
    for number in range(48):
        ids = [rng.randrange(3, 900) for _ in range(rng.choice([1, 7, 64, 130, 500]))]
        prompt = [ids, "Once upon a time there was", [("user", "What is 3 plus 4?")]][number % 3]
        sampling = {"temperature": rng.choice([0, 1]), "seed": number, "top_p": 0.9}
        request = client.request(prompt, sampling=sampling, max_tokens=rng.randrange(1, 40))
        request.scheduling.priority = rng.randrange(4)
        request.cache.skip = number % 7 == 0
        if number % 5 == 0:
            request.state.return_state = True
        if number % 4 == 0:
            request.state.save_state_as = str(number)
        elif number % 9 == 1:
            request.constraint.regex = "[A-Z][a-z ]{5,60}[.]"
        kinds.append(request)
    return kinds


def go_on(client: States, finished) -> list[int]:
    """What follows from the state that an answer left, which is gone afterwards."""
    state_id = finished.state.state_id
    answer = client.go(None, {"state_id": state_id}, max_tokens=5)
    client.states.DeleteState(client.session.DeleteStateRequest(state_id=state_id))
    return list(answer.choices[0].token_ids)


def fill_slots(server, client: Client) -> list:
    """Streams for all slots that nobody reads, with buffers as small as they get."""
    silent = []
    for number in range(SLOTS):
        channel = grpc.insecure_channel(server.address, options=[
            ("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 1024)])
        silent.append((channel, Client(channel).start([number + 3], max_tokens=SILENT_TOKENS,
                                                      ignore_eos=True, timeout=600)))
    running = lambda: client.stub.GetCapacity(client.pb.GetCapacityRequest()).slots_used == SLOTS
    wait_until(running, "they have all slots")
    return silent


def test_mixed_load(servers, bundled_model):
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    server = servers(bundled_model, "--max-slots", str(SLOTS), "--prefix-cache-bytes", "20000000",
                     "--swap-after", "5ms")
    clients = [States(server.channel()) for _ in range(STREAMS)]
    kinds = make_kinds(clients[0], random.Random(seed))
    answers = [clients[0].stub.Generate(kind) for kind in kinds]
    expected = [list(answer.choices[0].token_ids) for answer in answers]
    after = [go_on(clients[0], answer) if kind.state.HasField("save_state_as") else None
             for kind, answer in zip(kinds, answers)]
    spoken = list(clients[0].generate([3], max_tokens=SILENT_TOKENS, ignore_eos=True)
                  .choices[0].token_ids)
    silent = fill_slots(server, clients[0])
    counts = {"right": 0, "cancelled": 0}
    lock = threading.Lock()

    def one_stream(number: int) -> None:
        rng = random.Random(seed + number)
        for _ in range(REQUESTS // STREAMS):
            kind = rng.randrange(len(kinds))
            call = clients[number].stub.GenerateStream(kinds[kind], timeout=120)
            if rng.random() < 0.3:
                try:
                    for _ in range(rng.randrange(4)):
                        next(call)
                except StopIteration:
                    pass
                call.cancel()
                outcome = "cancelled"
            else:
                result = collect(call)
                assert result.ids == expected[kind], f"request of kind {kind}"
                if after[kind] is not None:
                    assert go_on(clients[number], result.finished) == after[kind]
                outcome = "right"
            with lock:
                counts[outcome] += 1

    def load() -> int:
        with ThreadPoolExecutor(STREAMS) as pool:
            list(pool.map(one_stream, range(STREAMS)))
        return resident_bytes(server)

    first = load()  # arenas and caches have their size now
    second = load()
    # Every slot was a silent reader's, so nothing was answered without their being swapped out.
    swapped = clients[0].stub.GetCapacity(clients[0].pb.GetCapacityRequest()).swapped
    assert swapped == SLOTS
    # They miss nothing.
    assert collect(silent[0][1]).ids == spoken
    for channel, call in silent[1:]:
        call.cancel()
        channel.close()
    print("answered right", counts["right"], "cancelled", counts["cancelled"],
          "resident MiB", first >> 20, second >> 20)
    assert counts["right"] + counts["cancelled"] == 2 * (REQUESTS // STREAMS) * STREAMS
    assert second < first * 1.1 + (8 << 20)

    # A cancel that came too late may have left a state.
    for state in clients[0].list(page_size=1000):
        clients[0].states.DeleteState(
            clients[0].session.DeleteStateRequest(state_id=state.state_id))

    def idle() -> bool:
        capacity = clients[0].stub.GetCapacity(clients[0].pb.GetCapacityRequest())
        return (capacity.slots_used + capacity.running + capacity.swapped
                + capacity.queued_requests + capacity.queued_tokens + capacity.saved_states
                + capacity.saved_state_bytes + capacity.state_transit_bytes) == 0

    wait_until(idle, "every gauge is zero")
