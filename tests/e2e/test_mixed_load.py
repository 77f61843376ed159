"""Requests of every kind through 64 streams, three in ten cancelled: right answers, nothing left.

Short here; OSDN_LOAD_REQUESTS=10000 is the long version.
"""

from __future__ import annotations

import os
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import Client, wait_until

REQUESTS = int(os.environ.get("OSDN_LOAD_REQUESTS", "400"))
STREAMS = 64


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
        kinds.append(request)
    return kinds


def test_mixed_load(servers, bundled_model):
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    server = servers(bundled_model, "--max-slots", "16", "--prefix-cache-bytes", "20000000")
    clients = [Client(server.channel()) for _ in range(STREAMS)]
    kinds = make_kinds(clients[0], random.Random(seed))
    expected = [list(clients[0].stub.Generate(kind).choices[0].token_ids) for kind in kinds]
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
                ids = [token for frame in call for token in frame.delta.token_ids]
                assert ids == expected[kind], f"request of kind {kind}"
                outcome = "right"
            with lock:
                counts[outcome] += 1

    def load() -> int:
        with ThreadPoolExecutor(STREAMS) as pool:
            list(pool.map(one_stream, range(STREAMS)))
        return resident_bytes(server)

    first = load()  # arenas and caches have their size now
    second = load()
    print("answered right", counts["right"], "cancelled", counts["cancelled"],
          "resident MiB", first >> 20, second >> 20)
    assert counts["right"] + counts["cancelled"] == 2 * (REQUESTS // STREAMS) * STREAMS
    assert second < first * 1.1 + (8 << 20)

    def idle() -> bool:
        capacity = clients[0].stub.GetCapacity(clients[0].pb.GetCapacityRequest())
        return (capacity.slots_used + capacity.running + capacity.swapped
                + capacity.queued_requests + capacity.queued_tokens) == 0

    wait_until(idle, "every gauge is zero")
