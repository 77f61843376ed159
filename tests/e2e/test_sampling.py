"""Sampling options over the wire: penalties, biases, logprobs, echo."""

from __future__ import annotations

import math

import grpc
import numpy as np
import pytest
from harness import GOLDEN
from safetensors.numpy import load_file

PROMPT = [1, 5, 9, 13, 17, 21, 44, 3]
GREEDY = {"temperature": 0}


def log_softmax(x):
    x = x.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@pytest.mark.parametrize("length", [3, 64, 100])
def test_logprobs_are_the_models_own(tiny, length):
    """Against the golden logits; temperature, penalties and biases leave them alone."""
    golden = load_file(str(GOLDEN / "tiny" / "expected.st"))
    prompt = golden["ids"].tolist()[:length]
    expected = log_softmax(golden["logits"][length - 1])
    for sampling in (GREEDY, {"temperature": 3, "seed": 1, "top_k": 3, "repetition_penalty": 1.7,
                              "logit_bias": [{"token_id": 40, "bias": 9}]}):
        result = tiny.stream(prompt, sampling=sampling, max_tokens=1, ignore_eos=True,
                             output={"logprobs": True, "top_logprobs": 20})
        told = result.deltas[0].logprobs[0]
        assert told.token_id == result.ids[0]
        assert told.logprob == pytest.approx(expected[told.token_id], abs=2e-3)
        best = np.sort(expected)[::-1][:20]
        assert [top.logprob for top in told.top] == pytest.approx(best, abs=2e-3)
        assert [top.logprob for top in told.top] == sorted((t.logprob for t in told.top),
                                                           reverse=True)
        for top in told.top:
            assert top.logprob == pytest.approx(expected[top.token_id], abs=2e-3)


def test_one_logprob_a_token_and_none_unasked(tiny):
    result = tiny.generate(PROMPT, max_tokens=30, ignore_eos=True, output={"logprobs": True})
    choice = result.choices[0]
    assert [x.token_id for x in choice.logprobs] == list(choice.token_ids)
    assert all(not x.top and x.logprob <= 0 for x in choice.logprobs)
    streamed = tiny.stream(PROMPT, max_tokens=30, ignore_eos=True, output={"logprobs": True})
    assert [x for d in streamed.deltas for x in d.logprobs] == list(choice.logprobs)
    assert not tiny.generate(PROMPT, max_tokens=3, ignore_eos=True).choices[0].logprobs


def test_logprobs_do_not_depend_on_who_else_runs(tiny):
    options = {"max_tokens": 25, "ignore_eos": True, "output": {"logprobs": True, "top_logprobs": 5}}
    alone = tiny.generate(PROMPT, **options).choices[0]
    others = [tiny.start([3 + i] * (10 + 7 * i), max_tokens=200, ignore_eos=True,
                         sampling={"temperature": 1, "seed": i}) for i in range(12)]
    for other in others:
        next(other)
    assert tiny.generate(PROMPT, **options).choices[0] == alone  # bit for bit
    for other in others:
        other.cancel()


def test_penalties_end_repetition(tiny):
    options = {"max_tokens": 60, "ignore_eos": True}
    plain = tiny.stream(PROMPT, sampling={"temperature": 0}, **options).ids
    assert len(set(plain)) < 60
    strong = tiny.stream(PROMPT, sampling={"temperature": 0, "presence_penalty": 2,
                                           "frequency_penalty": 2}, **options).ids
    assert len(set(strong)) > len(set(plain))
    window = tiny.stream(PROMPT, sampling={"temperature": 0, "presence_penalty": 2,
                                           "frequency_penalty": 2, "penalty_window": 1},
                         **options).ids
    assert window != strong


def test_bias_forces_and_forbids(tiny):
    force = {"temperature": 1, "seed": 3, "logit_bias": [{"token_id": 40, "bias": 100}]}
    assert set(tiny.stream(PROMPT, sampling=force, max_tokens=20).ids) == {40}
    allowed = {7, 8}
    forbid = {"temperature": 1, "seed": 3,
              "logit_bias": [{"token_id": t, "bias": -math.inf} for t in range(97)
                             if t not in allowed]}
    assert set(tiny.stream(PROMPT, sampling=forbid, max_tokens=60).ids) == allowed


def test_nothing_left_to_sample(tiny):
    everything = [{"token_id": t, "bias": -math.inf} for t in range(97)]
    with pytest.raises(grpc.RpcError) as error:
        tiny.generate(PROMPT, sampling={"temperature": 1, "logit_bias": everything}, max_tokens=4)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "logit_bias" in error.value.details()


def test_resolved_parameters_are_echoed(tiny):
    sampling = {"temperature": 0.5, "typical_p": 0.5, "repetition_penalty": 1.25,
                "presence_penalty": -0.5, "frequency_penalty": 0.25, "penalty_window": 77,
                "logit_bias": [{"token_id": 5, "bias": -2}], "seed": 9}
    params = tiny.generate(PROMPT, sampling=sampling, max_tokens=2,
                           output={"logprobs": True, "top_logprobs": 2, "echo": True}).params
    expected = tiny.pb.SamplingParams(**sampling, top_k=0, top_p=1, min_p=0, n=1)
    assert params.sampling == expected
    assert params.output == tiny.pb.OutputOptions(logprobs=True, top_logprobs=2, echo=True)
    defaults = tiny.generate(PROMPT, max_tokens=2).params.sampling
    assert (defaults.typical_p, defaults.repetition_penalty, defaults.penalty_window) == (1, 1, 1024)


def test_echo(tiny, bundled):
    plain = tiny.generate(PROMPT, max_tokens=9, ignore_eos=True, output={"logprobs": True})
    echoed = tiny.generate(PROMPT, max_tokens=9, ignore_eos=True,
                           output={"logprobs": True, "echo": True})
    assert list(echoed.choices[0].token_ids) == PROMPT + list(plain.choices[0].token_ids)
    assert echoed.choices[0].logprobs == plain.choices[0].logprobs
    assert echoed.usage == plain.usage

    prompt = "Once upon a time"
    text = bundled.generate(prompt, max_tokens=12).choices[0].text
    stream = bundled.stream(prompt, max_tokens=12, output={"echo": True})
    assert stream.text == prompt + text
    assert stream.deltas[0].text == prompt


def test_token_bytes(bundled):
    answer = bundled.generate("Once upon a time", max_tokens=12,
                              output={"logprobs": True, "top_logprobs": 3})
    choice = answer.choices[0]
    assert b"".join(x.token_bytes for x in choice.logprobs).decode() == choice.text
    tokens = bundled.stub.Tokenize(bundled.pb.TokenizeRequest(text=" time")).tokens
    known = {t.id: t.bytes for t in tokens}
    for logprob in choice.logprobs:
        for top in logprob.top:
            assert known.get(top.token_id, top.token_bytes) == top.token_bytes


def test_min_tokens_masks_every_end(bundled):
    result = bundled.stream([("user", "Hello!")], max_tokens=40, min_tokens=40,
                            sampling={"temperature": 0})
    assert len(result.ids) == 40
    model = bundled.stub.GetModel(bundled.pb.GetModelRequest())
    assert not set(result.ids) & set(model.eos_ids)
