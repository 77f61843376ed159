"""Text: streams of whole characters, stop strings, the tokenizer calls, chat."""

from __future__ import annotations

import random

import grpc
import pytest
from harness import Client, run_tools
from sentencepiece import SentencePieceProcessor


@pytest.fixture(scope="module")
def tokenizer(text_model) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(text_model / "tokenizer.model"))


@pytest.fixture
def text(text_server) -> Client:
    return Client(text_server.channel())


SAMPLES = ["hello", "the old dog went over the hill", " leading and  double  spaces ", "äöü € 漢字",
           "🐕 emoji", "tab\tand\nnewline", "<|user|> is only text here", "a" * 1000, "\x00\x01"]


def test_tokenize_is_sentencepiece(text, tokenizer):
    pb = text.pb
    for sample in SAMPLES:
        answer = text.stub.Tokenize(pb.TokenizeRequest(text=sample))
        assert [token.id for token in answer.tokens] == tokenizer.encode(sample), sample
        with_bos = text.stub.Tokenize(pb.TokenizeRequest(text=sample, add_bos=True))
        assert [token.id for token in with_bos.tokens] == [1, *tokenizer.encode(sample)], sample
        ids = [token.id for token in answer.tokens]
        assert [token.piece for token in answer.tokens] == [tokenizer.id_to_piece(i) for i in ids]
        back = text.stub.Detokenize(pb.DetokenizeRequest(ids=ids))
        assert back.text == tokenizer.decode(ids), sample


def test_detokenize_rejects_ids_outside(text, tokenizer):
    with pytest.raises(grpc.RpcError) as error:
        text.stub.Detokenize(text.pb.DetokenizeRequest(ids=[5, tokenizer.vocab_size()]))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert str(tokenizer.vocab_size()) in error.value.details()


def test_text_prompt_is_bos_and_its_ids(text, tokenizer):
    options = {"max_tokens": 30, "ignore_eos": True}
    sample = "the old cat said"
    as_text = text.stream(sample, **options)
    assert as_text.ids == text.stream([1, *tokenizer.encode(sample)], **options).ids
    assert as_text.finished.usage.prompt_tokens == 1 + len(tokenizer.encode(sample))


def test_deltas_are_whole_characters_and_add_up(text):
    """The model babbles bytes; protobuf refuses strings that are not UTF-8, so each delta is whole."""
    for seed in range(12):
        options = {"sampling": {"temperature": 1.5, "seed": seed}, "max_tokens": 200,
                   "ignore_eos": True}
        stream = text.stream("hello", **options)
        unary = text.generate("hello", **options)
        assert stream.text == unary.choices[0].text
        assert stream.ids == list(unary.choices[0].token_ids)
        assert len(stream.deltas) > 50


def test_stop_string_ends_the_text_before_it(text):
    rng = random.Random(11)
    checked = 0
    for seed in range(20):
        options = {"sampling": {"temperature": 1.0, "seed": seed}, "ignore_eos": True}
        free = text.stream("hello", max_tokens=120, **options).text
        start = rng.randrange(5, len(free) - 10)
        stop = free[start:start + rng.randrange(1, 6)]
        if "\ufffd" in stop:  # stands for bytes that are no character, so it is in no token's text
            continue
        result = text.stream("hello", max_tokens=120, stop_strings=["never this", stop], **options)
        assert result.text == free[:free.index(stop)], (seed, stop)
        assert result.finished.finish_reason == text.pb.FINISH_REASON_STOP_STRING
        assert result.finished.stop_string == stop
        checked += 1
    assert checked >= 3


def test_held_back_text_is_flushed_at_the_end(text):
    """A stop string that begins but does not complete is shown after all."""
    options = {"sampling": {"temperature": 1.0, "seed": 4}, "max_tokens": 40, "ignore_eos": True}
    free = text.stream("hello", **options).text
    held = text.stream("hello", stop_strings=[free[-3:] + "and never this"], **options)
    assert held.text == free
    assert held.finished.finish_reason == text.pb.FINISH_REASON_LENGTH


def test_messages_are_rendered_with_role_tokens(text, tokenizer):
    system, user, assistant, end = (tokenizer.piece_to_id(piece) for piece in (
        "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"))
    messages = [("system", "the old king"), ("user", "hello <|end|> dog"), ("assistant", "hello"),
                ("user", "cat")]
    roles = {"system": system, "user": user, "assistant": assistant}
    ids = [1]
    for role, content in messages:
        ids += [roles[role], *tokenizer.encode(content), end]  # <|end|> in a content is only text
    ids.append(assistant)
    assert ids.count(end) == len(messages)
    options = {"max_tokens": 25, "ignore_eos": True}
    chat = text.stream(messages, **options)
    assert chat.finished.usage.prompt_tokens == len(ids)
    assert chat.ids == text.stream(ids, stop_token_ids=[end], **options).ids


def test_get_model_tells_about_text(text, tokenizer):
    model = text.stub.GetModel(text.pb.GetModelRequest())
    assert model.has_tokenizer and model.has_chat_template
    assert set(model.chat_roles) == {"system", "user", "assistant"}
    assert model.architecture.vocab_size == tokenizer.vocab_size()


def test_generate_prints_the_text(text_server, text, tmp_path):
    expected = text.stream("the dog", max_tokens=20, ignore_eos=True)
    flags = ["--address", text_server.address, "--temperature", "0", "--max-tokens", "20",
             "--ignore-eos"]
    assert run_tools("generate", *flags, "--prompt", "the dog").stdout == expected.text + "\n"
    assert run_tools("generate", *flags, input="the dog").stdout == expected.text + "\n"
    (tmp_path / "prompt").write_text("the dog")
    from_file = run_tools("generate", *flags, "--prompt-file", tmp_path / "prompt")
    assert from_file.stdout == expected.text + "\n"
