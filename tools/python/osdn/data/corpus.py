"""Mixes all texts by curriculum, tokenises and packs them into shards of token rows.

A shard is a pure function of (seed, number), so any number of processes may make shards, and two
models may train on the very same ones. Documents start on multiples of 64 tokens, after at least
three tokens of padding, so that the chunk form and the short convolution can start afresh there.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
from pathlib import Path
from random import Random

import numpy as np

from osdn.data import chat, stories, words
from osdn.data.chat import Difficulty
from osdn.data.tokenizer import BOS, Tokenizer
from osdn.data.words import Words

ALIGN, GAP, PAD = 64, 3, 0
# Loss classes of a token as a target: not at all, running text, exact answer, user's text.
NONE, TEXT, EXACT, USER = range(4)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the curriculum: until which progress, how hard, and each text kind's share."""

    until: float
    level: Difficulty
    shares: dict[str, float]


CURRICULUM = (
    Stage(0.03, Difficulty((1, 2), 60, 8, 0.0, 0.0), {"recall": 0.8, "chatter": 0.2}),
    Stage(0.08, Difficulty((1, 4), 300, 14, 0.1, 0.0),
          {"recall": 0.7, "chatter": 0.15, "stories": 0.15}),
    Stage(0.2, Difficulty((1, 6), 5000, None, 0.2, 0.06),
          {"recall": 0.6, "chatter": 0.12, "stories": 0.18, "prose": 0.1}),
    Stage(0.5, Difficulty((1, 8), None, None, 0.3, 0.1),
          {"recall": 0.5, "chatter": 0.1, "stories": 0.2, "prose": 0.16, "long": 0.04}),
    Stage(1.0, Difficulty((1, 10), None, None, 0.3, 0.1),
          {"recall": 0.44, "chatter": 0.07, "stories": 0.16, "prose": 0.23, "long": 0.1}),
)


class Prose:
    """The fetched prose; one document in 25 is held out, its paragraphs never trained on."""

    def __init__(self, folder: Path, split: str) -> None:
        self.documents: list[list[str]] = []
        for path in sorted(folder.glob("*.txt")):
            for index, text in enumerate(path.read_text("utf-8").split("\f")):
                if (index % 25 == 7) == (split == words.HELD_OUT):
                    self.documents.append(text.split("\n\n"))
        self.sizes = [sum(map(len, document)) for document in self.documents]

    def excerpt(self, rng: Random) -> str:
        """Consecutive paragraphs of 300 to 16,000 characters."""
        document = rng.choices(self.documents, self.sizes)[0]
        limit = 300 * (16000 / 300) ** rng.random()
        start = rng.randrange(len(document))
        kept, size = [], 0
        for paragraph in document[start:]:
            kept.append(paragraph)
            size += len(paragraph)
            if size > limit:
                break
        return "\n\n".join(kept)


class Maker:
    """Makes token documents with a loss class for every token."""

    def __init__(self, tokenizer: Tokenizer, prose: Prose, split: str = words.TRAIN) -> None:
        self.tokenizer, self.prose, self.split = tokenizer, prose, split

    def conversation(self, messages: list[chat.Message]) -> tuple[list[int], list[int]]:
        ids, classes = [BOS], [NONE]
        for message in messages:
            part = self.tokenizer.message(message)
            answer = EXACT if message.weight == chat.EXACT else TEXT
            ids += part
            # The role token counts little: who speaks next is not ours to say.
            classes += [USER] + [answer if message.role == "assistant" else USER] * (len(part) - 1)
        return ids, classes

    def document(self, kind: str, rng: Random, level: Difficulty) -> tuple[list[int], list[int]]:
        w = Words(rng, self.split, level.pool)
        if kind == "recall":
            return self.conversation(chat.conversation(w, self.split, level))
        if kind == "long":
            long = dataclasses.replace(level, facts=(4, 16), repeats=rng.randint(2, 5))
            return self.conversation(chat.conversation(w, self.split, long))
        if kind == "chatter":
            return self.conversation(chat.chatter(w))
        if kind == "prose":
            text = self.prose.excerpt(rng)
        else:
            make = rng.choices((stories.story, stories.dialogue, stories.scene), (5, 2, 2))[0]
            text = "\n\n".join(make(w) for _ in range(rng.choice([1, 1, 1, 2, 3])))
        ids = self.tokenizer.document(text)
        return ids, [NONE] + [TEXT] * (len(ids) - 1)

    def shard(self, seed: int, number: int, total: int, lanes: int, length: int) -> np.ndarray:
        """uint16 [2, lanes, length]: ids (0 is padding) and loss classes."""
        rng = Random(f"{seed} {number}")
        progress = number / total
        stage = next(s for s in CURRICULUM if progress < s.until or s is CURRICULUM[-1])
        spent = dict.fromkeys(stage.shares, 0.0)
        rows = np.zeros((2, lanes, length), np.uint16)
        for lane in range(lanes):
            position = 0
            while position < length:
                kind = min(spent, key=lambda name: spent[name] / stage.shares[name])
                ids, classes = self.document(kind, rng, stage.level)
                spent[kind] += len(ids)
                size = min(len(ids), length - position)
                rows[0, lane, position:position + size] = ids[:size]
                rows[1, lane, position:position + size] = classes[:size]
                position += -(-(len(ids) + GAP) // ALIGN) * ALIGN
        return rows


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard_{number:06}.npy"


_maker: Maker | None = None  # one per worker process


def _start_worker(tokenizer: Path, prose: Path) -> None:
    global _maker
    _maker = Maker(Tokenizer(tokenizer), Prose(prose, words.TRAIN))


def _write_shard(job: tuple[Path, int, int, int, int, int]) -> None:
    folder, seed, number, total, lanes, length = job
    path = shard_path(folder, number)
    if not path.exists():
        rows = _maker.shard(seed, number, total, lanes, length)
        partial = path.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, rows)
        partial.rename(path)  # whole or not at all: trainers wait for the name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, required=True, help="how many shards to make now")
    parser.add_argument("--total", type=int, required=True, help="shards of the whole training")
    parser.add_argument("--lanes", type=int, default=32)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [(args.out, args.seed, number, args.total, args.lanes, args.length)
            for number in range(args.first, args.first + args.count)]
    with multiprocessing.Pool(args.workers, _start_worker, (args.tokenizer, args.prose)) as pool:
        for _ in pool.imap(_write_shard, jobs):
            pass


if __name__ == "__main__":
    main()
