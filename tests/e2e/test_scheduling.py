"""Deadlines, time limits, priorities, slow readers, capacity."""

from __future__ import annotations

import threading

import grpc
import pytest
from harness import Client, collect, violations, wait_until

ENDLESS = 100_000_000


@pytest.fixture
def one_slot(servers, tiny_model):
    return servers(tiny_model, "--max-slots", "1", "--max-tokens-limit", str(ENDLESS),
                   "--max-queued-requests", "8")


def capacity(client: Client):
    return client.stub.GetCapacity(client.pb.GetCapacityRequest())


def scheduled(client: Client, prompt, scheduling: dict, **kwargs):
    request = client.request(prompt, **{"ignore_eos": True, **kwargs})
    request.scheduling.CopyFrom(client.pb.SchedulingOptions(**scheduling))
    return request


def test_capacity_tells_what_is_used_and_returns_to_nothing(one_slot):
    client = Client(one_slot.channel())
    idle = capacity(client)
    assert (idle.slots, idle.slots_used, idle.running, idle.queued_requests) == (1, 0, 0, 0)
    assert idle.max_queued_requests == 8 and idle.max_saved_states == 10_000
    running = client.start([5], max_tokens=ENDLESS, ignore_eos=True)
    next(running)
    waiting = client.start([6, 7, 8], max_tokens=1)
    busy = wait_until(lambda: (c := capacity(client)).queued_requests == 1 and c, "one waits")
    assert (busy.slots_used, busy.running, busy.queued_tokens) == (1, 1, 3)
    running.cancel()
    collect(waiting)
    done = capacity(client)
    assert (done.slots_used, done.running, done.queued_requests, done.queued_tokens) == (0, 0, 0, 0)
    assert done.prefix_cache_states > 0 and done.prefix_cache_bytes > 0


def test_max_time_ends_with_what_there_is(one_slot):
    client = Client(one_slot.channel())
    answer = client.stub.Generate(scheduled(client, [5], {"max_time_ms": 200}, max_tokens=ENDLESS))
    choice = answer.choices[0]
    assert choice.finish_reason == client.pb.FINISH_REASON_TIME
    assert len(choice.token_ids) == answer.usage.completion_tokens > 0
    # In the queue too: nothing was computed.
    running = client.start([5], max_tokens=ENDLESS, ignore_eos=True)
    next(running)
    answer = client.stub.Generate(scheduled(client, [6], {"max_time_ms": 50}, max_tokens=5))
    assert answer.choices[0].finish_reason == client.pb.FINISH_REASON_TIME
    assert answer.usage.completion_tokens == 0
    running.cancel()


def test_a_deadline_passes_in_the_queue(one_slot):
    client = Client(one_slot.channel())
    running = client.start([5], max_tokens=ENDLESS, ignore_eos=True)
    next(running)
    with pytest.raises(grpc.RpcError) as error:
        client.generate([6], max_tokens=5, timeout=0.1)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: capacity(client).queued_requests == 0, "the queue is empty")
    running.cancel()


def test_high_priority_overtakes(one_slot):
    client = Client(one_slot.channel())
    running = client.start([5], max_tokens=ENDLESS, ignore_eos=True)
    next(running)
    waits: dict[str, float] = {}

    def ask(name: str, priority: int, number: int) -> None:
        request = scheduled(client, [number], {"priority": priority}, max_tokens=50)
        waits[name] = client.stub.Generate(request).timings.queue_ms

    threads = []
    for number, (name, priority) in enumerate(
            [("low", client.pb.PRIORITY_LOW), ("normal", client.pb.PRIORITY_NORMAL),
             ("high", client.pb.PRIORITY_HIGH)]):
        threads.append(threading.Thread(target=ask, args=(name, priority, 10 + number)))
        threads[-1].start()
        wait_until(lambda n=number: capacity(client).queued_requests == n + 1, "it waits")
    running.cancel()
    for thread in threads:
        thread.join()
    # It came last and waited the least.
    assert waits["high"] < waits["normal"] < waits["low"]


def test_unknown_priority_is_named(one_slot):
    client = Client(one_slot.channel())
    with pytest.raises(grpc.RpcError) as error:
        client.stub.Generate(scheduled(client, [5], {"priority": 77}, max_tokens=1))
    assert "77" in violations(error.value)["scheduling.priority"]


def test_a_reader_that_does_not_read_blocks_nobody_and_misses_nothing(one_slot):
    client = Client(one_slot.channel())
    # Buffers as small as they get, so that they are full soon.
    channel = grpc.insecure_channel(one_slot.address, options=[
        ("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 1024)])
    slow = Client(channel).start([9, 8, 7], max_tokens=ENDLESS, ignore_eos=True)
    ids = list(next(slow).delta.token_ids)  # and no more for now
    # There is one slot, and it is the slow reader's until that one's buffers are full.
    for number in range(3):
        assert len(client.generate([number + 3], max_tokens=5, ignore_eos=True)
                   .choices[0].token_ids) == 5
    assert capacity(client).swapped == 1
    # It comes back as soon as it reads, and goes on exactly where it was.
    while capacity(client).swapped == 1:
        ids.extend(next(slow).delta.token_ids)
    came_back = len(ids)
    while len(ids) < came_back + 1000:
        ids.extend(next(slow).delta.token_ids)
    slow.cancel()
    channel.close()
    wait_until(lambda: capacity(client).running == 0, "the slot is free")
    plain = client.generate([9, 8, 7], max_tokens=len(ids), ignore_eos=True)
    assert ids == list(plain.choices[0].token_ids)
