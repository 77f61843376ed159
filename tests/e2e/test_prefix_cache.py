"""Prompts that were read before: what is computed again, and that no answer changes."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from harness import Client, violations

CHUNK = 64


def prompt(size: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 97) for _ in range(size)]


def ask(client: Client, ids, cache: dict | None = None, **options):
    request = client.request(ids, **{"max_tokens": 8, "ignore_eos": True, **options})
    if cache:
        request.cache.CopyFrom(client.pb.CacheOptions(**cache))
    return client.stub.Generate(request, timeout=60)


@pytest.fixture(scope="module")
def fresh(tiny_model):
    """A server of its own, so that nobody else's prompts are in the cache."""
    from harness import Server

    server = Server(tiny_model)
    yield server.wait_serving()
    assert server.stop() == 0, server.log


@pytest.fixture
def client(fresh) -> Client:
    return Client(fresh.channel())


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
def test_the_same_prompt_is_cached_to_the_token(client, size):
    ids = prompt(size, seed=size)
    first = ask(client, ids)
    second = ask(client, ids)
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == second.usage.prompt_tokens == size
    assert second.choices[0].token_ids == first.choices[0].token_ids


def test_a_longer_prompt_starts_at_the_last_chunk_border(client):
    stem = prompt(333, seed=1)
    assert ask(client, stem).usage.cached_tokens == 0
    longer = ask(client, stem + [5, 6, 7])
    assert longer.usage.cached_tokens == 333 // CHUNK * CHUNK
    uncached = ask(client, stem + [5, 6, 7], cache={"skip": True})
    assert uncached.usage.cached_tokens == 0
    assert uncached.choices[0].token_ids == longer.choices[0].token_ids


def test_salts_share_nothing(client):
    ids = prompt(200, seed=2)
    ask(client, ids, cache={"salt": "alice"})
    assert ask(client, ids, cache={"salt": "bob"}).usage.cached_tokens == 0
    assert ask(client, ids).usage.cached_tokens == 0
    assert ask(client, ids, cache={"salt": "alice"}).usage.cached_tokens == 200


def test_a_salt_too_long_is_named(client):
    with pytest.raises(grpc.RpcError) as error:
        ask(client, [5], cache={"salt": "x" * 257})
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "257" in violations(error.value)["cache.salt"]


def test_equal_prompts_at_once_are_read_once(client):
    ids = prompt(3000, seed=3)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(client, ids), range(8)))
    assert sorted(answer.usage.cached_tokens for answer in answers) == [0] + [3000] * 7
    assert all(a.choices[0].token_ids == answers[0].choices[0].token_ids for a in answers)


def test_random_prompts_over_common_stems_are_answered_as_without_a_cache(client):
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    rng = random.Random(seed)
    stems = [prompt(600, seed=rng.getrandbits(30)) for _ in range(3)]
    prompts = [rng.choice(stems)[:rng.randrange(1, 600)] + prompt(rng.randrange(0, 90), i)
               for i in range(40)]
    sampling = [{"temperature": rng.choice([0, 1]), "seed": i} for i in range(40)]
    plain = [ask(client, p, cache={"skip": True}, sampling=s)
             for p, s in zip(prompts, sampling, strict=True)]
    with ThreadPoolExecutor(10) as pool:
        cached = list(pool.map(lambda i: ask(client, prompts[i], sampling=sampling[i]), range(40)))
    assert sum(answer.usage.cached_tokens for answer in cached) > 0
    for number, (one, other) in enumerate(zip(plain, cached, strict=True)):
        assert one.choices[0].token_ids == other.choices[0].token_ids, f"prompt {number}"


def test_a_chat_rereads_only_what_is_new(bundled):
    history = [("user", "Once upon a time there was a little dog. " * 20)]
    first = bundled.generate(history, max_tokens=30)
    history += [("assistant", first.choices[0].text), ("user", "What was it?")]
    second = bundled.generate(history, max_tokens=30)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 2 * CHUNK
    again = bundled.generate(history, max_tokens=30)
    assert again.usage.cached_tokens == again.usage.prompt_tokens
    assert again.choices[0].text == second.choices[0].text


def test_the_cache_can_be_off(servers, tiny_model):
    client = Client(servers(tiny_model, "--prefix-cache-bytes", "0").channel())
    for _ in range(2):
        assert ask(client, prompt(100)).usage.cached_tokens == 0
