"""The generator: deterministic, splits disjoint, every asked fact was told before."""

from random import Random

import pytest

from osdn.data import chat, facts, stories, words
from osdn.data.words import Words


def test_splits_of_names_and_numbers_are_disjoint() -> None:
    drawn = {}
    for split in (words.TRAIN, words.HELD_OUT):
        w = Words(Random(1), split)
        drawn[split] = {w.name() for _ in range(500)} | {w.number(4) for _ in range(500)}
    assert not drawn[words.TRAIN] & drawn[words.HELD_OUT]


def test_every_statement_keeps_training_questions() -> None:
    for kind in (*facts.KINDS, facts.USER_NAME):
        for statement in range(len(kind.statements)):
            splits = {facts.pair_split(statement, i) for i in range(len(kind.questions))}
            assert words.TRAIN in splits


@pytest.mark.parametrize("seed", range(30))
def test_answers_follow_from_the_conversation(seed: int) -> None:
    messages = chat.conversation(Words(Random(seed), words.TRAIN), words.TRAIN, chat.Difficulty())
    again = chat.conversation(Words(Random(seed), words.TRAIN), words.TRAIN, chat.Difficulty())
    assert messages == again
    for index, message in enumerate(messages):
        if message.kind in ("recall", "update"):
            told = " ".join(m.text for m in messages[:index] if m.role == "user")
            assert message.value in told and message.value in message.text


@pytest.mark.parametrize("seed", range(10))
def test_examination_uses_held_out_names_only(seed: int) -> None:
    messages = chat.examination(Words(Random(seed), words.HELD_OUT))
    asked = [m for m in messages if m.kind == "recall"]
    assert 3 <= len(asked) <= 8
    for message in asked:
        name = message.text.split("'")[0]
        assert " " in name or words.split_of(name) == words.HELD_OUT


def test_texts_are_complete() -> None:
    w = Words(Random(5), words.TRAIN)
    for make in (stories.story, stories.dialogue, stories.scene):
        for _ in range(100):
            text = make(w)
            assert "{" not in text and "  " not in text and text[-1] in '."'
