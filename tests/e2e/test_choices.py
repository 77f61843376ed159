"""n > 1: choices of one prompt that was read once."""

from __future__ import annotations

import json

import grpc
import pytest
from harness import Client, run_tools, violations, wait_until
from test_states import States

PROMPT = [1, 5, 9, 13, 17, 21, 44, 3]
SAMPLED = {"temperature": 1, "seed": 11}
ENDLESS = 1_000_000_000


def choices_of(call) -> dict[int, dict]:
    """Reads a stream of several choices to its end: text, ids and Finished of each."""
    choices = {}
    for frame in call:
        kind = frame.WhichOneof("event")
        event = getattr(frame, kind)
        choice = choices.setdefault(event.index, {"ids": [], "text": "", "logprobs": [], "end": None})
        assert choice["end"] is None, "a choice goes on after its end"
        if kind == "delta":
            choice["ids"].extend(event.token_ids)
            choice["text"] += event.text
            choice["logprobs"].extend(event.logprobs)
        else:
            choice["end"] = event
    assert all(choice["end"] is not None for choice in choices.values())
    return choices


def test_a_choice_does_not_depend_on_how_many_there_are(tiny, servers, tiny_model):
    options = {"max_tokens": 25, "ignore_eos": True, "output": {"logprobs": True}}
    many = tiny.generate(PROMPT, sampling={**SAMPLED, "n": 16}, **options).choices
    assert [choice.index for choice in many] == list(range(16))
    assert len({tuple(choice.token_ids) for choice in many}) == 16
    narrow = Client(servers(tiny_model, "--max-slots", "3").channel())
    for client, n in ((tiny, 1), (tiny, 5), (narrow, 16), (narrow, 4)):
        answer = client.generate(PROMPT, sampling={**SAMPLED, "n": n}, **options)
        assert len(answer.choices) == n
        for one, other in zip(answer.choices, many):
            assert one.token_ids == other.token_ids
            assert one.logprobs == other.logprobs  # bit for bit


def test_the_stream_is_the_unary_answer(bundled):
    options = {"sampling": {**SAMPLED, "n": 4}, "max_tokens": 30}
    unary = bundled.generate("Once upon a time", **options)
    streamed = choices_of(bundled.start("Once upon a time", **options))
    assert set(streamed) == {0, 1, 2, 3}
    for choice in unary.choices:
        stream = streamed[choice.index]
        assert stream["text"] == choice.text
        assert stream["ids"] == list(choice.token_ids)
        assert stream["end"].finish_reason == choice.finish_reason
        assert stream["end"].params == unary.params
    assert unary.params.sampling.n == 4


def test_usage_counts_the_prompt_once(tiny):
    prompt = [7] * 90
    request = tiny.request(prompt, sampling={**SAMPLED, "n": 3}, max_tokens=5, ignore_eos=True)
    request.cache.skip = True
    answer = tiny.stub.Generate(request)
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens) == (90, 0)
    assert answer.usage.completion_tokens == 15
    assert [c.usage.cached_tokens for c in answer.choices] == [0, 90, 90]
    assert all(c.usage.prompt_tokens == 90 and c.usage.completion_tokens == 5
               for c in answer.choices)


@pytest.mark.parametrize("n", [0, 17, 2**32 - 1])
def test_limits(tiny, n):
    with pytest.raises(grpc.RpcError) as error:
        tiny.generate(PROMPT, sampling={"n": n}, max_tokens=0)
    found = violations(error.value)
    assert set(found) == {"sampling.n", "stop.max_tokens"}
    assert "[1, 16]" in found["sampling.n"]
    assert tiny.stub.GetModel(tiny.pb.GetModelRequest()).max_choices == 16


def test_capacity_counts_every_choice_and_cancel_ends_all(servers, tiny_model):
    client = Client(servers(tiny_model, "--max-slots", "2",
                            "--max-tokens-limit", str(ENDLESS)).channel())

    def capacity():
        return client.stub.GetCapacity(client.pb.GetCapacityRequest())

    call = client.start(PROMPT, sampling={**SAMPLED, "n": 6}, max_tokens=ENDLESS, ignore_eos=True)
    seen = {next(call).delta.index for _ in range(40)}
    assert seen == set(range(6)), "every choice has its first token"
    busy = wait_until(lambda: (c := capacity()).running == 6 and c, "six sequences")
    assert (busy.slots_used, busy.swapped, busy.queued_requests) == (2, 4, 0)
    call.cancel()
    done = wait_until(lambda: (c := capacity()).running == 0 and c, "nothing runs")
    assert (done.slots_used, done.swapped, done.queued_tokens) == (0, 0, 0)


def test_time_ends_every_choice(servers, tiny_model):
    client = Client(servers(tiny_model, "--max-slots", "1",
                            "--max-tokens-limit", str(ENDLESS)).channel())
    request = client.request(PROMPT, sampling={**SAMPLED, "n": 3}, max_tokens=ENDLESS,
                             ignore_eos=True)
    request.scheduling.max_time_ms = 100
    answer = client.stub.Generate(request)
    assert [c.finish_reason for c in answer.choices] == [client.pb.FINISH_REASON_TIME] * 3
    assert all(c.token_ids for c in answer.choices)


def test_every_choice_leaves_a_state(tiny_server):
    client = States(tiny_server.channel())
    sampling = {**SAMPLED, "n": 3}
    whole = client.generate(PROMPT, sampling=sampling, max_tokens=24, ignore_eos=True).choices
    first = client.go(PROMPT, {"save_state_as": "part", "return_state": True}, sampling=sampling,
                      max_tokens=10)
    assert not first.HasField("state") and not first.state_blob
    for choice, all_of_it in zip(first.choices, whole):
        for origin in ({"state_id": choice.state.state_id}, {"state_blob": choice.state_blob}):
            rest = client.go(None, origin, sampling={"temperature": 1}, max_tokens=14)
            assert [*choice.token_ids, *rest.choices[0].token_ids] == list(all_of_it.token_ids)
    # A stream tells them one by one.
    request = client.request(PROMPT, sampling=sampling, max_tokens=3, ignore_eos=True)
    request.state.save_state_as = "streamed"
    ends = [c["end"] for c in choices_of(client.stub.GenerateStream(request)).values()]
    assert len({end.state.state_id for end in ends}) == 3
    with pytest.raises(grpc.RpcError) as error:
        client.go(None, {"state_id": ends[0].state.state_id, "save_state_as": "", "replace": True},
                  sampling=sampling, max_tokens=3)
    assert list(violations(error.value)) == ["state.replace"]


def test_states_that_nobody_hears_of_are_not_kept(servers, tiny_model):
    client = States(servers(tiny_model, "--state-max-count", "2").channel())
    with pytest.raises(grpc.RpcError) as error:
        client.go(PROMPT, {"save_state_as": "x"}, sampling={**SAMPLED, "n": 4}, max_tokens=3)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.list() == []
    client.go(PROMPT, {"save_state_as": "x"}, sampling={**SAMPLED, "n": 2}, max_tokens=3)
    assert len(client.list()) == 2


def test_tools_generate_tells_every_choice(tiny_server, tiny):
    flags = ["--address", tiny_server.address, "--ids", "5 6 7", "--seed", "3", "--max-tokens", "6",
             "--ignore-eos", "--n", "3", "--logit-bias", "9=-inf", "--repetition-penalty", "1.2"]
    expected = tiny.generate(
        [5, 6, 7], max_tokens=6, ignore_eos=True, output={"logprobs": True, "top_logprobs": 2},
        sampling={"seed": 3, "n": 3, "logit_bias": [{"token_id": 9, "bias": float("-inf")}],
                  "repetition_penalty": 1.2})
    lines = run_tools("generate", *flags, "--json", "--logprobs", "--top-logprobs", "2").stdout
    told, decoder = [], json.JSONDecoder()
    while lines.strip():
        value, end = decoder.raw_decode(lines.lstrip())
        told.append(value)
        lines = lines.lstrip()[end:]
    assert sorted(choice["index"] for choice in told) == [0, 1, 2]
    for choice in told:
        same = expected.choices[choice["index"]]
        assert choice["token_ids"] == list(same.token_ids)
        assert [x["logprob"] for x in choice["logprobs"]] == pytest.approx(
            [x.logprob for x in same.logprobs])
        assert all(len(x["top"]) == 2 for x in choice["logprobs"])
    shown = run_tools("generate", *flags).stdout
    for choice in expected.choices:
        ids = " ".join(map(str, choice.token_ids))
        assert f"--- choice {choice.index} ---\n{ids}\n" in shown
