"""The bundled model: parity with PyTorch and quality, as served."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from harness import REPO, Client, run_tools
from safetensors.numpy import load_file

PARITY_PROMPTS = ["Once upon a time", "The old man walked down to the harbour", "It is a truth"]
PARITY_TOKENS = 256
CONVERSATIONS = 200
RECALL_BAR = 0.80


def reference(command: str, **arguments):
    """Runs reference.py (see there why it is a process of its own)."""
    done = subprocess.run([sys.executable, REPO / "tests" / "e2e" / "reference.py", command],
                          input=json.dumps(arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def score(model: Path, ids: list[int], out: Path, *flags: str) -> np.ndarray:
    ids_file = out.with_suffix(".ids")
    ids_file.write_text(" ".join(map(str, ids)))
    run_tools("score", "--model", model, "--ids-file", ids_file, "--logits-out", out, *flags)
    return load_file(str(out))["logits"]


@pytest.fixture(scope="module")
def wide_checkpoint(bundled_model, tmp_path_factory) -> Path:
    """The shipped weights widened to float32, as a checkpoint that both sides read."""
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    summary = json.loads(run_tools("inspect", bundled_model, "--json").stdout)
    reference("widen", model=str(bundled_model), summary=summary, out=str(folder))
    return folder


@pytest.fixture(scope="module")
def wide_model(wide_checkpoint) -> Path:
    model = wide_checkpoint.parent / "wide"
    run_tools("convert", wide_checkpoint, model, "--dtype", "f32")
    return model


def test_256_greedy_tokens_equal_pytorch(servers, wide_checkpoint, wide_model):
    client = Client(servers(wide_model).channel())
    prompts = []
    for text in PARITY_PROMPTS:
        tokens = client.stub.Tokenize(client.pb.TokenizeRequest(text=text, add_bos=True)).tokens
        prompts.append([token.id for token in tokens])
    expected = reference("generate", checkpoint=str(wide_checkpoint), prompts=prompts,
                         tokens=PARITY_TOKENS)
    for prompt, tokens in zip(prompts, expected, strict=True):
        served = client.stream(prompt, max_tokens=PARITY_TOKENS, ignore_eos=True)
        assert len(served.ids) == PARITY_TOKENS
        assert served.ids == tokens


@pytest.mark.parametrize("step", ["1", None])
def test_logits_equal_pytorch(wide_checkpoint, wide_model, tmp_path, step):
    ids = np.random.default_rng(1).integers(3, 1000, 200).tolist()
    ours = score(wide_model, ids, tmp_path / "ours", *(["--step", step] if step else []))
    reference("logits", checkpoint=str(wide_checkpoint), ids=ids, out=str(tmp_path / "theirs"))
    assert np.abs(ours - load_file(str(tmp_path / "theirs"))["logits"]).max() <= 1e-3


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def test_bf16_stays_close_to_float32(bundled_model, wide_model, tmp_path):
    """Mean KL of the next-token distribution: as shipped against the same weights in float32."""
    questions = reference("exams", tokenizer=str(bundled_model / "tokenizer.model"), count=1,
                          seed=5, facts=[8, 8])
    ids = questions[-1]["ids"]
    narrow = log_softmax(score(bundled_model, ids, tmp_path / "narrow"))
    wide = log_softmax(score(wide_model, ids, tmp_path / "wide"))
    assert (np.exp(wide) * (wide - narrow)).sum(-1).mean() <= 1e-3


@pytest.mark.slow
def test_recall_on_held_out_conversations(bundled_model, bundled):
    """Exact answers, greedy, to questions about 3 to 8 facts with the true history before each."""
    questions = reference("exams", tokenizer=str(bundled_model / "tokenizer.model"),
                          count=CONVERSATIONS, seed=2026, facts=[3, 8])
    assert len(questions) >= CONVERSATIONS * 3

    def is_right(question: dict) -> bool:
        history = [tuple(message) for message in question["history"]]
        reply = bundled.generate(history, max_tokens=48)
        assert reply.usage.prompt_tokens == len(question["ids"])
        return reply.choices[0].text == question["answer"]

    with ThreadPoolExecutor(32) as pool:
        right = sum(pool.map(is_right, questions))
    print(f"{right} of {len(questions)} answers are exact")
    assert right >= RECALL_BAR * len(questions)


def test_prose_is_text(bundled):
    """Greedy prose is words, not noise (its quality is in the model's card)."""
    result = bundled.stream("Once upon a time", max_tokens=80, ignore_eos=True)
    letters = sum(character.isalpha() or character.isspace() for character in result.text)
    assert len(result.text) > 80 and letters > 0.8 * len(result.text)
    assert "\ufffd" not in result.text


def test_chat_answers_from_the_conversation(bundled_server):
    lines = "My locker number is 4817.\nWhat is my locker number?\n"
    answers = run_tools("chat", "--address", bundled_server.address, "--temperature", "0",
                        input=lines).stdout.splitlines()
    assert len(answers) == 2 and "4817" in answers[1]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantized_model_answers_from_the_conversation(servers, bundled_model, tmp_path, dtype):
    """What the weights are rounded to still remembers; tests/unit/tools holds the perplexity bars."""
    run_tools("quantize", bundled_model, tmp_path / dtype, "--dtype", dtype)
    server = servers(tmp_path / dtype)
    lines = "My locker number is 4817.\nWhat is my locker number?\n"
    answers = run_tools("chat", "--address", server.address, "--temperature", "0",
                        input=lines).stdout.splitlines()
    assert len(answers) == 2 and "4817" in answers[1]
