"""Trains the SentencePiece tokenizer on a sample of the final training mixture."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random

import sentencepiece

from osdn.data import chat, stories, words
from osdn.data.corpus import CURRICULUM, Prose
from osdn.data.tokenizer import CONTROL_SYMBOLS
from osdn.data.words import Words


def sample(prose: Path, characters: int, seed: int) -> Iterator[str]:
    """Lines of prose, conversations and stories, a third of the characters each."""
    rng = Random(seed)
    source = Prose(prose, words.TRAIN)
    w = Words(rng, words.TRAIN)
    texts = (lambda: [source.excerpt(rng)],
             lambda: [m.text for m in chat.conversation(w, words.TRAIN, CURRICULUM[-1].level)],
             lambda: [stories.story(w), stories.dialogue(w), stories.scene(w)])
    spent = [0, 0, 0]
    while sum(spent) < characters:
        kind = spent.index(min(spent))
        for text in texts[kind]():
            spent[kind] += len(text)
            yield from (line for line in text.split("\n") if line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="tokenizer.model")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--characters", type=int, default=6_000_000)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    with args.out.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sample(args.prose, args.characters, args.seed), model_writer=file,
            vocab_size=args.vocab, model_type="bpe", byte_fallback=True, split_digits=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False,
            add_dummy_prefix=True, character_coverage=0.9999, max_sentence_length=20000,
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, control_symbols=CONTROL_SYMBOLS,
            num_threads=1, minloglevel=1)


if __name__ == "__main__":
    main()
