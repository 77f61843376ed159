"""Generate and GenerateStream: the same tokens, whatever the way."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from harness import GOLDEN, Client, run_tools, violations
from safetensors.numpy import load_file

PROMPT = [1, 5, 9, 13, 17, 21, 44, 3]


def greedy_reference(name: str, prompt: list[int], count: int) -> list[int]:
    """The greedy tokens after the golden prompt's first token positions, from the golden logits."""
    golden = load_file(str(GOLDEN / name / "expected.st"))
    ids, logits = golden["ids"].tolist(), golden["logits"]
    assert prompt == ids[:len(prompt)]
    # Only as long as the reference text itself goes on with the most likely token.
    result = []
    for position in range(len(prompt) - 1, len(prompt) - 1 + count):
        result.append(int(np.argmax(logits[position])))
        if position + 1 >= len(ids) or ids[position + 1] != result[-1]:
            break
    return result


@pytest.mark.parametrize("name", ["tiny", "tiny_apf_gate"])
@pytest.mark.parametrize("length", [1, 7, 64, 65, 150])
def test_first_token_is_the_golden_one(servers, tiny_model, gated_model, name, length):
    server = servers(tiny_model if name == "tiny" else gated_model)
    golden = load_file(str(GOLDEN / name / "expected.st"))
    prompt = golden["ids"].tolist()[:length]
    result = Client(server.channel()).stream(prompt, max_tokens=1, ignore_eos=True)
    assert result.ids == greedy_reference(name, prompt, 1)


def test_stream_equals_unary(tiny):
    for seed in range(5):
        sampling = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "seed": seed}
        stream = tiny.stream(PROMPT, sampling=sampling, max_tokens=60, ignore_eos=True)
        unary = tiny.generate(PROMPT, sampling=sampling, max_tokens=60, ignore_eos=True)
        assert len(stream.ids) == 60
        assert list(unary.choices[0].token_ids) == stream.ids
        assert unary.choices[0].finish_reason == stream.finished.finish_reason
        # The second of the two finds the prompt in the prefix cache; all else is the same.
        assert unary.usage.prompt_tokens == stream.finished.usage.prompt_tokens
        assert unary.usage.completion_tokens == stream.finished.usage.completion_tokens
        assert unary.params == stream.finished.params


def test_answer_tells_what_was_in_force(tiny):
    sampling = {"temperature": 0.5, "top_k": 7, "seed": 2**63 + 5}
    result = tiny.stream(PROMPT, sampling=sampling, max_tokens=4, ignore_eos=True)
    params, usage = result.finished.params, result.finished.usage
    assert params.sampling.temperature == 0.5
    assert params.sampling.top_k == 7
    assert params.sampling.top_p == 1
    assert params.sampling.min_p == 0
    assert params.sampling.seed == 2**63 + 5
    assert params.stop.max_tokens == 4
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(PROMPT), 4)
    assert result.finished.model == "tiny"


def test_drawn_seed_repeats_the_answer(tiny):
    first = tiny.stream(PROMPT, sampling={"temperature": 1}, max_tokens=30, ignore_eos=True)
    seed = first.finished.params.sampling.seed
    again = tiny.stream(PROMPT, sampling={"temperature": 1, "seed": seed}, max_tokens=30,
                        ignore_eos=True)
    others = [tiny.stream(PROMPT, sampling={"temperature": 1}, max_tokens=30, ignore_eos=True)
              for _ in range(3)]
    assert again.ids == first.ids
    assert any(other.ids != first.ids for other in others)


def test_stop_token_and_length(tiny):
    pb = tiny.pb
    free = tiny.stream(PROMPT, max_tokens=40, ignore_eos=True)
    assert free.finished.finish_reason == pb.FINISH_REASON_LENGTH
    stop = free.ids[9]
    cut = free.ids.index(stop)
    stopped = tiny.stream(PROMPT, max_tokens=40, ignore_eos=True, stop_token_ids=[stop])
    assert stopped.ids == free.ids[:cut]
    assert stopped.finished.finish_reason == pb.FINISH_REASON_STOP
    later = tiny.stream(PROMPT, max_tokens=40, min_tokens=20, ignore_eos=True,
                        stop_token_ids=[stop])
    assert stop not in later.ids[:20]
    assert len(later.ids) >= 20


def test_prefill_progress(tiny):
    prompt = [3 + i % 90 for i in range(5000)]
    options = {"max_tokens": 2, "ignore_eos": True}
    result = tiny.stream(prompt, output={"prefill_progress": True}, **options)
    seen = [frame.processed_tokens for frame in result.progress]
    assert seen == sorted(set(seen)) and len(seen) >= 4
    assert seen[-1] == 5000 and all(frame.prompt_tokens == 5000 for frame in result.progress)
    silent = tiny.stream(prompt, **options)
    assert not silent.progress and silent.ids == result.ids


def test_get_model(tiny, gated_model, servers):
    model = tiny.stub.GetModel(tiny.pb.GetModelRequest())
    assert model.name == "tiny"
    assert len(model.model_id) == 64
    arch = model.architecture
    assert (arch.layers, arch.hidden_size, arch.heads, arch.vocab_size) == (2, 64, 4, 97)
    assert (arch.key_dim, arch.value_dim, arch.type, arch.apf) == (16, 16, "osdn", "none")
    assert not model.has_tokenizer and not model.has_chat_template
    assert list(model.eos_ids) == [2] and model.bos_id == 1
    assert model.max_tokens_limit == 100000 and model.max_running == 32
    # S, d and three tails of 3 inputs, two layers, float32.
    assert model.state_bytes_per_sequence >= 2 * 4 * (4 * 16 * 16 + 4 * 16 + 3 * 3 * 64)
    other = Client(servers(gated_model).channel())
    gated = other.stub.GetModel(other.pb.GetModelRequest())
    assert (gated.architecture.apf, gated.architecture.value_dim) == ("scalar", 32)
    assert gated.model_id != model.model_id


def test_text_needs_a_tokenizer(tiny):
    with pytest.raises(grpc.RpcError) as error:
        tiny.stream("Hello")
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "tokenizer" in violations(error.value)["prompt.text"]
    for call in (lambda: tiny.stub.Tokenize(tiny.pb.TokenizeRequest(text="Hello")),
                 lambda: tiny.stub.Detokenize(tiny.pb.DetokenizeRequest(ids=[5]))):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "tokenizer" in error.value.details()


def test_backends_agree(servers, gated_model):
    """Greedy tokens of the cpu backend are those of the plain reference."""
    prompt = [3 + (i * 7) % 90 for i in range(100)]
    answers = []
    for backend in ("reference", "cpu"):
        client = Client(servers(gated_model, "--backend", backend).channel())
        assert client.stub.GetModel(client.pb.GetModelRequest()).backend == backend
        answers.append(client.stream(prompt, max_tokens=64, ignore_eos=True).ids)
    assert answers[0] == answers[1]


def test_in_process_generation_is_the_same(tiny, tiny_model):
    """osdn-tools generate --model runs the same engine without a network."""
    served = tiny.stream(PROMPT, max_tokens=20, ignore_eos=True).ids
    local = run_tools("generate", "--model", tiny_model, "--ids", ",".join(map(str, PROMPT)),
                      "--temperature", "0", "--max-tokens", "20", "--ignore-eos")
    assert list(map(int, local.stdout.split())) == served
