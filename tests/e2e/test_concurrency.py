"""Many clients at once: isolation, slots, cancellation, deadlines, overload."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from harness import PATIENCE, Client, collect, wait_until

CLIENTS = 32
ENDLESS = 100_000


def tiny_requests(seed: int) -> list[tuple[list[int], dict]]:
    """Prompts of many lengths, greedy and sampled, some short and some long answers."""
    rng = random.Random(seed)
    requests = []
    for number in range(CLIENTS):
        prompt = [rng.randrange(3, 97) for _ in range(rng.choice([1, 2, 31, 64, 65, 200, 513]))]
        sampling = {"temperature": 0.0 if number % 3 == 0 else 1.0, "seed": rng.getrandbits(63),
                    "top_k": rng.choice([0, 5, 50]), "top_p": rng.choice([1.0, 0.9])}
        requests.append((prompt, {"sampling": sampling, "max_tokens": rng.randrange(1, 200),
                                  "ignore_eos": number % 2 == 0}))
    return requests


def stream_together(server, requests) -> list:
    """All requests at the same moment, each on a connection of its own."""
    barrier = threading.Barrier(len(requests))

    def run(request):
        client = Client(server.channel())
        client.stub.GetModel(client.pb.GetModelRequest())  # connected before the start
        barrier.wait(PATIENCE)
        return client.stream(request[0], **request[1])

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(run, requests))


@pytest.mark.parametrize("slots, prefill", [("32", "256"), ("32", "64"), ("5", "1024")])
def test_32_clients_get_what_each_gets_alone(servers, tiny_model, slots, prefill):
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    requests = tiny_requests(seed)
    server = servers(tiny_model, "--max-slots", slots, "--max-prefill-tokens", prefill)
    alone_client = Client(server.channel())
    alone = [alone_client.stream(prompt, **options) for prompt, options in requests]
    together = stream_together(server, requests)
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert other.ids == one.ids, f"client {number}"
        assert other.finished.finish_reason == one.finished.finish_reason, f"client {number}"


def test_32_text_clients_on_the_bundled_model(bundled_server, bundled):
    rng = random.Random(7)
    words = "the a dog cat old king river said went and then quickly home under bridge".split()
    requests = []
    for number in range(CLIENTS):
        text = " ".join(rng.choices(words, k=rng.randrange(1, 60)))
        sampling = {"temperature": 0.0 if number % 2 else 0.8, "seed": number}
        requests.append((text, {"sampling": sampling, "max_tokens": rng.randrange(5, 80)}))
    alone = [bundled.stream(prompt, **options) for prompt, options in requests]
    together = stream_together(bundled_server, requests)
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert (other.ids, other.text) == (one.ids, one.text), f"client {number}"


def started(call):
    """The call after its first token has come: it holds a slot now."""
    frame = next(call)
    assert frame.WhichOneof("event") == "delta"
    return call


@pytest.mark.parametrize("how", ["cancel", "disconnect"])
def test_a_client_that_goes_frees_the_slot(servers, tiny_model, how):
    server = servers(tiny_model, "--max-slots", "1", "--max-tokens-limit", str(ENDLESS))
    waiting = Client(server.channel())
    for _ in range(5):
        channel = server.channel()
        call = started(Client(channel).start([5, 6, 7], max_tokens=ENDLESS, ignore_eos=True,
                                             sampling={"temperature": 1}))
        follower = waiting.start([8, 9], max_tokens=3, ignore_eos=True)
        if how == "cancel":
            call.cancel()
        else:
            channel.close()
        assert len(collect(follower).ids) == 3


def test_cancelled_call_says_so(servers, tiny_model):
    server = servers(tiny_model, "--max-tokens-limit", str(ENDLESS))
    call = started(Client(server.channel()).start([5], max_tokens=ENDLESS, ignore_eos=True))
    call.cancel()
    with pytest.raises(grpc.RpcError) as error:
        collect(call)
    assert error.value.code() == grpc.StatusCode.CANCELLED


def test_cancel_in_the_queue_and_in_prefill(servers, tiny_model):
    server = servers(tiny_model, "--max-slots", "1", "--max-tokens-limit", str(ENDLESS))
    client = Client(server.channel())
    holder = started(client.start([5], max_tokens=ENDLESS, ignore_eos=True))
    queued = [client.start([7] * 50_000, max_tokens=1) for _ in range(8)]
    for call in queued[:7]:
        call.cancel()
    holder.cancel()
    wait_until(lambda: not holder.is_active(), "the holder has ended")
    queued[7].cancel()  # reading its 50,000 tokens by now
    assert len(client.stream([8, 9], max_tokens=3, ignore_eos=True).ids) == 3


def test_deadline_while_generating(servers, tiny_model):
    server = servers(tiny_model, "--max-slots", "1", "--max-tokens-limit", str(ENDLESS))
    client = Client(server.channel())
    call = client.start([5], timeout=0.5, max_tokens=ENDLESS, ignore_eos=True)
    with pytest.raises(grpc.RpcError) as error:
        for _ in call:
            time.sleep(0.002)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(client.stream([8, 9], max_tokens=3, ignore_eos=True).ids) == 3


def test_deadline_while_queued(servers, tiny_model):
    server = servers(tiny_model, "--max-slots", "1", "--max-tokens-limit", str(ENDLESS))
    client = Client(server.channel())
    holder = started(client.start([5], max_tokens=ENDLESS, ignore_eos=True))
    with pytest.raises(grpc.RpcError) as error:
        client.generate([6], timeout=0.3, max_tokens=1)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert holder.is_active()
    holder.cancel()
    assert len(client.stream([8, 9], max_tokens=3, ignore_eos=True).ids) == 3


def test_full_queue_refuses_at_once(servers, tiny_model):
    server = servers(tiny_model, "--max-slots", "1", "--max-queued-requests", "2",
                     "--max-tokens-limit", str(ENDLESS))
    client = Client(server.channel())
    holder = started(client.start([5], max_tokens=ENDLESS, ignore_eos=True))
    calls = [client.stub.Generate.future(client.request([6], max_tokens=1), timeout=PATIENCE)
             for _ in range(6)]
    wait_until(lambda: sum(call.done() for call in calls) >= 4, "four of six calls are refused")
    refused = [call for call in calls if call.done()]
    assert len(refused) == 4 and holder.is_active()
    for call in refused:
        assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        (detail,) = rpc_status.from_call(call).details
        retry = error_details_pb2.RetryInfo()
        assert detail.Unpack(retry) and retry.retry_delay.ToTimedelta().total_seconds() > 0
    holder.cancel()
    for call in calls:
        if call not in refused:
            assert len(call.result().choices[0].token_ids) <= 1


def test_a_slow_reader_does_not_slow_others(servers, tiny_model):
    server = servers(tiny_model, "--max-slots", "2", "--max-tokens-limit", str(ENDLESS))
    slow = started(Client(server.channel()).start([5], max_tokens=ENDLESS, ignore_eos=True))
    quick = Client(server.channel())
    for _ in range(5):  # nobody reads `slow` meanwhile
        assert len(quick.stream([8, 9], max_tokens=500, ignore_eos=True).ids) == 500
    assert slow.is_active()
    slow.cancel()


def test_hundreds_of_cancels_leave_the_server_whole(servers, tiny_model):
    server = servers(tiny_model, "--max-slots", "4", "--max-tokens-limit", str(ENDLESS))
    client = Client(server.channel())
    expected = client.stream([11, 12, 13], max_tokens=40, ignore_eos=True).ids
    rng = random.Random(3)

    def start_and_cancel(_: int) -> None:
        call = client.start([rng.randrange(3, 97)] * rng.randrange(1, 300), max_tokens=ENDLESS,
                            ignore_eos=True)
        for _, _frame in zip(range(rng.randrange(0, 4)), call):
            pass
        call.cancel()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start_and_cancel, range(400)))
    # All four slots work, and none kept anything of the cancelled sequences.
    requests = [([11, 12, 13], {"max_tokens": 40, "ignore_eos": True})] * 8
    assert [result.ids for result in stream_together(server, requests)] == [expected] * 8
