"""Score: logprobs of given continuations."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from harness import GOLDEN, Client, violations, wait_until
from safetensors.numpy import load_file
from sentencepiece import SentencePieceProcessor
from test_states import States

PROMPT = [1, 5, 9, 13, 17, 21, 44, 3]


def score(client: Client, prompt, continuations, top_logprobs: int = 0, timeout: float = 60,
          **parts):
    """`continuations`: texts or lists of ids. `parts`: cache, state, scheduling, as dicts."""
    pb = client.pb
    generate = client.request(prompt) if prompt is not None else pb.GenerateRequest()
    request = pb.ScoreRequest(top_logprobs=top_logprobs, continuations=[
        pb.Continuation(text=c) if isinstance(c, str) else pb.Continuation(
            tokens=pb.TokenIds(ids=c)) for c in continuations])
    if generate.HasField("prompt"):
        request.prompt.CopyFrom(generate.prompt)
    kinds = {"cache": pb.CacheOptions, "state": pb.StateOptions, "scheduling": pb.SchedulingOptions}
    for name, values in parts.items():
        getattr(request, name).CopyFrom(kinds[name](**values))
    return client.stub.Score(request, timeout=timeout)


def refused(*args, **kwargs) -> dict[str, str]:
    with pytest.raises(grpc.RpcError) as error:
        score(*args, **kwargs)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, error.value
    return violations(error.value)


@pytest.mark.parametrize("split", [3, 64, 100])
def test_against_the_golden_logits(tiny, split):
    golden = load_file(str(GOLDEN / "tiny" / "expected.st"))
    ids, logits = golden["ids"].tolist(), golden["logits"].astype(np.float64)
    continuation = ids[split:split + 20]
    rows = logits[split - 1:split - 1 + len(continuation)]
    expected = rows - rows.max(1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(1, keepdims=True))
    told = score(tiny, ids[:split], [continuation, [int(rows[0].argmax())]], top_logprobs=3)
    first = told.scores[0]
    assert [token.token_id for token in first.tokens] == continuation
    wanted = [row[token] for row, token in zip(expected, continuation)]
    assert [token.logprob for token in first.tokens] == pytest.approx(wanted, abs=2e-3)
    assert first.logprob == pytest.approx(sum(token.logprob for token in first.tokens))
    for token, row in zip(first.tokens, expected):
        best = np.sort(row)[::-1][:3]
        assert [top.logprob for top in token.top] == pytest.approx(best, abs=2e-3)
    assert told.scores[1].is_greedy and told.scores[1].index == 1


def test_bit_for_bit_what_generating_tells(tiny):
    options = {"max_tokens": 30, "ignore_eos": True, "output": {"logprobs": True, "top_logprobs": 5}}
    sampled = tiny.generate(PROMPT, sampling={"temperature": 1, "seed": 2, "n": 6}, **options)
    greedy = tiny.generate(PROMPT, sampling={"temperature": 0}, **options).choices[0]
    paths = [*sampled.choices, greedy]
    others = [tiny.start([3 + i] * (10 + 7 * i), max_tokens=300, ignore_eos=True,
                         sampling={"temperature": 1, "seed": i}) for i in range(8)]
    for other in others:
        next(other)
    told = score(tiny, PROMPT, [list(path.token_ids) for path in paths], top_logprobs=5)
    for path, one in zip(paths, told.scores):
        assert list(one.tokens) == list(path.logprobs)
    assert [one.is_greedy for one in told.scores] == [False] * 6 + [True]
    for other in others:
        other.cancel()


def test_the_prompt_is_read_once_and_cached(tiny):
    prompt = [8] * 130
    first = score(tiny, prompt, [[5], [6, 7], [8, 9, 10]], cache={"salt": "score"})
    assert (first.usage.prompt_tokens, first.usage.cached_tokens) == (130, 0)
    assert first.usage.completion_tokens == 6
    again = score(tiny, prompt, [[8, 9, 10]], cache={"salt": "score"})
    assert again.usage.cached_tokens == 130
    assert again.scores[0].tokens == first.scores[2].tokens
    assert again.model == "tiny" and again.timings.time_to_first_token_ms > 0


def test_more_continuations_than_slots(servers, tiny_model, tiny):
    narrow = Client(servers(tiny_model, "--max-slots", "2").channel())
    continuations = [[i + 3, i + 4, i + 5] for i in range(64)]
    assert score(narrow, PROMPT, continuations).scores == score(tiny, PROMPT, continuations).scores


def test_text_follows_text(text_server, text_model):
    client = Client(text_server.channel())
    tokenizer = SentencePieceProcessor(model_file=str(text_model / "tokenizer.model"))
    prompt, ends = "the old dog", [" went over the hill", " said", " <|end|>"]
    told = score(client, prompt, ends)
    for end, one in zip(ends, told.scores):
        whole = tokenizer.encode(prompt + end)
        ids = whole[len(tokenizer.encode(prompt)):]
        assert [token.token_id for token in one.tokens] == ids
        assert b"".join(token.token_bytes for token in one.tokens).decode() == end
    assert told.scores == score(client, prompt, [[t.token_id for t in s.tokens]
                                                 for s in told.scores]).scores
    found = refused(client, "the old do", ["g went"])
    assert list(found) == ["continuations[0].text"] and "space" in found["continuations[0].text"]
    # An answer in a chat is a text by itself.
    answer = score(client, [("user", "hello")], ["the cat"]).scores[0]
    assert [token.token_id for token in answer.tokens] == tokenizer.encode("the cat")


def test_from_a_state(tiny_server):
    client = States(tiny_server.channel())
    left = client.go(PROMPT, {"save_state_as": ""}, max_tokens=5)
    whole = [*PROMPT, *left.choices[0].token_ids]
    continuations = [[3, 4, 5], [6]]
    from_state = score(client, None, continuations, state={"state_id": left.state.state_id})
    assert from_state.usage.cached_tokens == len(whole) - 1  # its last token was pending
    fresh = score(client, whole, continuations, cache={"skip": True})
    for one, other in zip(from_state.scores, fresh.scores):
        # The last of them was read as a prompt here, as a decode step there.
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert one.is_greedy == other.is_greedy
    found = refused(client, PROMPT, [[5]], state={"save_state_as": "", "return_state": True})
    assert set(found) == {"state.save_state_as", "state.return_state"}


def test_every_violation_at_once(tiny):
    found = refused(tiny, [5, 97], [[], [5, 200], "text"], top_logprobs=21,
                    cache={"salt": "x" * 257})
    assert set(found) == {"prompt.tokens.ids[1]", "continuations[0].tokens.ids",
                          "continuations[1].tokens.ids[1]", "continuations[2].text", "top_logprobs",
                          "cache.salt"}
    assert list(refused(tiny, PROMPT, [])) == ["continuations"]
    assert "64" in refused(tiny, PROMPT, [[5]] * 65)["continuations"]
    assert list(refused(tiny, None, [[5]])) == ["prompt"]
    pb = tiny.pb
    with pytest.raises(grpc.RpcError) as error:
        tiny.stub.Score(pb.ScoreRequest(prompt=tiny.request(PROMPT).prompt,
                                        continuations=[pb.Continuation()]))
    assert list(violations(error.value)) == ["continuations[0]"]
    assert tiny.stub.GetModel(pb.GetModelRequest()).max_continuations == 64


def test_deadlines_and_limits(servers, tiny_model):
    client = Client(servers(tiny_model, "--max-slots", "1", "--max-tokens-limit", "100000",
                            "--max-queued-tokens", "200000").channel())

    def idle():
        capacity = client.stub.GetCapacity(client.pb.GetCapacityRequest())
        return capacity.running + capacity.queued_tokens + capacity.slots_used == 0

    long = [[5] * 90_000, [6] * 90_000]
    for how in ({"timeout": 0.2}, {"scheduling": {"max_time_ms": 200}}):
        with pytest.raises(grpc.RpcError) as error:
            score(client, PROMPT, long, **how)
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(idle, "the slot is free")
    assert "200000" in refused(client, PROMPT, [*long, [7] * 90_000])["continuations"]
    assert "100000" in refused(client, PROMPT, [[5] * 100_001])["continuations[0]"]
