"""Bad requests: INVALID_ARGUMENT that names every field, its value and its range."""

from __future__ import annotations

import math

import grpc
import pytest
from harness import Client, violations

NAN = math.nan
GREEDY = {"temperature": 0}


def rejected(call) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, error.value
    return error.value


# prompt, other arguments, the field named, what its description must hold
CASES = {
    "no ids": ([], {}, "prompt.tokens.ids", "at least 1"),
    "id of the vocabulary's size": ([5, 97], {}, "prompt.tokens.ids[1]", "97"),
    "huge id": ([2**32 - 1], {}, "prompt.tokens.ids[0]", "4294967295"),
    "negative temperature": ([5], {"sampling": {"temperature": -0.5}}, "sampling.temperature",
                             "-0.5"),
    "high temperature": ([5], {"sampling": {"temperature": 100.5}}, "sampling.temperature", "100"),
    "NaN temperature": ([5], {"sampling": {"temperature": NAN}}, "sampling.temperature", "nan"),
    "infinite temperature": ([5], {"sampling": {"temperature": math.inf}}, "sampling.temperature",
                             "inf"),
    "top_p 0": ([5], {"sampling": {"top_p": 0.0}}, "sampling.top_p", "0"),
    "top_p above 1": ([5], {"sampling": {"top_p": 1.5}}, "sampling.top_p", "1.5"),
    "NaN top_p": ([5], {"sampling": {"top_p": NAN}}, "sampling.top_p", "nan"),
    "min_p above 1": ([5], {"sampling": {"min_p": 1.01}}, "sampling.min_p", "1.01"),
    "negative min_p": ([5], {"sampling": {"min_p": -0.1}}, "sampling.min_p", "-0.1"),
    "NaN min_p": ([5], {"sampling": {"min_p": NAN}}, "sampling.min_p", "nan"),
    "huge top_k": ([5], {"sampling": {"top_k": 2**32 - 1}}, "sampling.top_k", "4294967295"),
    "typical_p 0": ([5], {"sampling": {"typical_p": 0.0}}, "sampling.typical_p", "0"),
    "repetition_penalty 0": ([5], {"sampling": {"repetition_penalty": 0.0}},
                             "sampling.repetition_penalty", "(0, 10]"),
    "presence_penalty": ([5], {"sampling": {"presence_penalty": 2.1}},
                         "sampling.presence_penalty", "2.1"),
    "NaN frequency_penalty": ([5], {"sampling": {"frequency_penalty": NAN}},
                              "sampling.frequency_penalty", "nan"),
    "penalty_window 0": ([5], {"sampling": {"penalty_window": 0}}, "sampling.penalty_window",
                         "8192"),
    "bias of no token": ([5], {"sampling": {"logit_bias": [{"token_id": 97, "bias": 1}]}},
                         "sampling.logit_bias[0]", "97"),
    "bias twice": ([5], {"sampling": {"logit_bias": [{"token_id": 9}, {"token_id": 9}]}},
                   "sampling.logit_bias[1]", "already"),
    "huge bias": ([5], {"sampling": {"logit_bias": [{"token_id": 9, "bias": 101}]}},
                  "sampling.logit_bias[0]", "101"),
    "1025 biases": ([5], {"sampling": {"logit_bias": [{"token_id": 9}] * 1025}},
                    "sampling.logit_bias", "1024"),
    "21 top logprobs": ([5], {"output": {"logprobs": True, "top_logprobs": 21}},
                        "output.top_logprobs", "20"),
    "top logprobs alone": ([5], {"output": {"top_logprobs": 3}}, "output.top_logprobs",
                           "output.logprobs"),
    "max_tokens 0": ([5], {"max_tokens": 0}, "stop.max_tokens", "0"),
    "max_tokens above the limit": ([5], {"max_tokens": 100_001}, "stop.max_tokens", "100000"),
    "min_tokens above max_tokens": ([5], {"max_tokens": 3, "min_tokens": 4}, "stop.min_tokens",
                                    "4"),
    "stop id outside": ([5], {"stop_token_ids": [3, 97]}, "stop.stop_token_ids[1]", "97"),
    "65 stop ids": ([5], {"stop_token_ids": [3] * 65}, "stop.stop_token_ids", "64"),
    "stop string without tokenizer": ([5], {"stop_strings": ["x"]}, "stop.stop_strings",
                                      "tokenizer"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["stream", "generate"])
def test_bad_value(tiny, case, method):
    prompt, arguments, field, text = CASES[case]
    arguments = {"sampling": GREEDY, **arguments}
    found = violations(rejected(lambda: getattr(tiny, method)(prompt, **arguments)))
    assert list(found) == [field]
    assert text in found[field].lower()


def test_no_prompt_at_all(tiny):
    error = rejected(lambda: tiny.stub.Generate(tiny.pb.GenerateRequest()))
    assert list(violations(error)) == ["prompt"]


def test_all_violations_at_once(tiny):
    error = rejected(lambda: tiny.generate(
        [5, 999], sampling={"temperature": -1, "top_p": 7, "min_p": NAN}, max_tokens=0,
        stop_token_ids=[200]))
    found = violations(error)
    assert set(found) >= {"prompt.tokens.ids[1]", "sampling.temperature", "sampling.top_p",
                          "sampling.min_p", "stop.max_tokens", "stop.stop_token_ids[0]"}
    assert "sampling.temperature" in error.details()


def test_prompt_longer_than_the_queue(servers, tiny_model):
    client = Client(servers(tiny_model, "--max-queued-tokens", "100").channel())
    found = violations(rejected(lambda: client.generate([5] * 101, max_tokens=1)))
    assert list(found) == ["prompt"] and "100" in found["prompt"] and "101" in found["prompt"]
    assert client.generate([5] * 100, max_tokens=1)


def test_message_larger_than_the_limit(servers, tiny_model):
    client = Client(servers(tiny_model, "--max-message-bytes", "1024").channel())
    with pytest.raises(grpc.RpcError) as error:
        client.generate([5] * 2000, max_tokens=1)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.generate([5] * 200, max_tokens=1)


def test_garbage_on_the_wire_harms_nobody(servers, tiny_model):
    server = servers(tiny_model)
    channel = server.channel()
    for method in ("Generate", "Tokenize", "GetModel"):
        call = channel.unary_unary(f"/osdn.v1.InferenceService/{method}")
        with pytest.raises(grpc.RpcError) as error:
            call(b"\xff\xff\xff\x0f garbage", timeout=30)
        assert error.value.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/osdn.v1.InferenceService/NoSuchMethod")(b"", timeout=30)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert len(Client(channel).stream([5], max_tokens=2, ignore_eos=True).ids) == 2


@pytest.mark.parametrize("strings, field", [
    ([""], "stop.stop_strings[0]"), (["x" * 257], "stop.stop_strings[0]"),
    (["x"] * 17, "stop.stop_strings")])
def test_bad_stop_strings(bundled, strings, field):
    found = violations(rejected(lambda: bundled.generate("Hello", stop_strings=strings)))
    assert list(found) == [field]


def test_empty_text_and_unknown_role(bundled):
    assert list(violations(rejected(lambda: bundled.generate("")))) == ["prompt.text"]
    error = rejected(lambda: bundled.generate([("wizard", "Hello")]))
    assert "wizard" in violations(error)["prompt.messages"]
