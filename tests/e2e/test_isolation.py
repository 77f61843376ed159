"""Nobody hears another's secrets, and whose numbers break ends alone."""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from checkpoints import copy_golden, edit_tensors
from harness import Client, run_tools, wait_until
from test_states import States, code_of, ids

CLIENTS = 64
ROUNDS = 2
ALONE = 12  # of them first asked while nobody else is
Code = grpc.StatusCode


def idle(client: Client) -> bool:
    capacity = client.stub.GetCapacity(client.pb.GetCapacityRequest())
    return (capacity.slots_used + capacity.running + capacity.swapped + capacity.queued_requests
            + capacity.queued_tokens + capacity.state_transit_bytes) == 0


def test_secrets_of_64_clients_never_cross(servers, bundled_model):
    """tests/integration/canary_test.cc looks into the slots; this one asks the model, from outside."""
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    server = servers(bundled_model, "--max-slots", "8", "--prefix-cache-bytes", "20000000")
    secrets = random.Random(seed).sample(range(1000, 10000), CLIENTS)
    told = [[("user", f"My locker number is {secret}.")] for secret in secrets]
    asked = [("user", "What is my locker number?")]
    clients = [States(server.channel()) for _ in range(CLIENTS)]

    def conversation(number: int) -> tuple[list[int], list[int], str]:
        """Tells the secret, and asks for it in a request that has only the state."""
        client = clients[number]
        first = client.go(told[number], {"save_state_as": ""}, ignore_eos=False, max_tokens=30)
        second = client.go(asked, {"state_id": first.state.state_id}, ignore_eos=False,
                           max_tokens=30)
        client.states.DeleteState(
            client.session.DeleteStateRequest(state_id=first.state.state_id))
        return ids(first), ids(second), first.choices[0].text + second.choices[0].text

    alone = [conversation(number) for number in range(ALONE)]
    remembered = sum(str(secret) in text for secret, (_, _, text) in zip(secrets, alone))
    assert remembered > ALONE // 2, "the model keeps no secrets that could be heard"

    def client(number: int) -> None:
        rng = random.Random(seed + number)
        wanted = alone[number] if number < ALONE else None
        for _ in range(ROUNDS):
            # A stream that is dropped somewhere: its slot is somebody else's next.
            call = clients[number].start(told[number], max_tokens=30)
            for _ in range(rng.randrange(4)):
                next(call)
            call.cancel()
            answers = conversation(number)
            wanted = wanted or answers
            assert answers == wanted
            for heard in re.findall(r"\d{4}", answers[2]):
                assert heard == str(secrets[number]) or int(heard) not in secrets

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    wait_until(lambda: idle(clients[0]), "every gauge is zero")
    assert not clients[0].list()


BAD = 50  # reading this token breaks the numbers of whoever reads it


@pytest.fixture(scope="module")
def breakable_model(tmp_path_factory):
    """tiny, with one token that overflows the first layer's values; all others are as before."""
    folder = tmp_path_factory.mktemp("breakable")
    copy_golden(folder / "checkpoint")

    def overflow(tensors: dict) -> None:
        embeddings = tensors["model.embeddings.weight"]
        embeddings[:, 0] = 0
        embeddings[BAD, 0] = 100
        name = next(name for name in tensors if ".0." in name and "v_proj.weight" in name)
        tensors[name][:, 0] = np.finfo(np.float32).max

    edit_tensors(folder / "checkpoint", overflow)
    run_tools("convert", folder / "checkpoint", folder / "model")
    return folder / "model"


def test_numbers_that_break_end_their_own_request_only(servers, breakable_model):
    server = servers(breakable_model, "--max-slots", "4", "--max-tokens-limit", "100000")
    client = States(server.channel())
    stem = [3 + i % 40 for i in range(200)]
    good = [*stem, 7, 8, 9]
    plain = ids(client.generate(good, max_tokens=30, ignore_eos=True))
    running = client.start(stem, max_tokens=100_000, ignore_eos=True)
    next(running)  # in a slot beside those that break

    bad_prompts = [[BAD], [*stem[:100], BAD, *stem[100:]], [*stem, BAD]]
    for prompt in bad_prompts * 3:
        with pytest.raises(grpc.RpcError) as error:
            client.generate(prompt, max_tokens=5)
        assert error.value.code() == Code.INTERNAL
        assert "finite" in error.value.details() or "nan" in error.value.details()
        # Nothing of it is in the slot that the next one gets (and fills itself), nor in what the
        # cache has of the stem.
        for skip in (True, False):
            request = client.request(good, max_tokens=30, ignore_eos=True)
            request.cache.skip = skip
            assert ids(client.stub.Generate(request, timeout=60)) == plain
    # No state of it, however it is asked for.
    for prompt in bad_prompts:
        assert code_of(client.save, prompt) == Code.INTERNAL
        assert code_of(client.go, prompt, {"return_state": True}, max_tokens=5) == Code.INTERNAL
    assert not client.list()
    # The cache holds what is before the bad token, and nothing after it.
    again = client.stub.GetCapacity(client.pb.GetCapacityRequest())
    with pytest.raises(grpc.RpcError):
        client.generate([*stem[:100], BAD, *stem[100:], 5], max_tokens=5)
    after = client.stub.GetCapacity(client.pb.GetCapacityRequest())
    assert after.prefix_cache_cached_tokens - again.prefix_cache_cached_tokens == 64
    next(running)
    running.cancel()
    wait_until(lambda: idle(client), "every gauge is zero")
    assert server.health() == 1


def test_a_state_that_is_not_finite_is_refused(servers, tiny_model):
    """With a right checksum: only its numbers are wrong."""
    import hashlib

    client = States(servers(tiny_model).channel())
    blob = bytearray(client.export(client.save([5, 6]).state.state_id))
    blob[-64 - 97 * 4 - 4:-64 - 97 * 4] = np.float32(np.nan).tobytes()  # before logits and trailer
    blob[-32:] = hashlib.sha256(blob[:-32]).digest()
    for function, arguments in ((client.import_, [bytes(blob)]),
                                (client.go, [None, {"state_blob": bytes(blob)}])):
        with pytest.raises(grpc.RpcError) as error:
            function(*arguments)
        assert error.value.code() == Code.INVALID_ARGUMENT
        assert "not finite" in error.value.details()
