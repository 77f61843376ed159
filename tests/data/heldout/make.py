"""Writes stories.txt, conversations.ids and prose.txt: what models/osdn-mini was never trained on.

From tools/python, with its venv:
    python fetch_prose.py --work W/debs --out W/prose --packages r-cran-janeaustenr
    PYTHONPATH=. python ../../tests/data/heldout/make.py W/prose
The names and numbers are of the generator's held-out split, with a seed of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

from osdn.data import chat, stories, words
from osdn.data.corpus import Prose
from osdn.data.tokenizer import Tokenizer
from osdn.data.words import Words

HERE = Path(__file__).resolve().parent
SEED = "osdn held out 2026-11"
STORIES, CONVERSATIONS = 14, 6
CHAPTERS, CHAPTER_CHARACTERS = 5, 2500


def main() -> None:
    rng = Random(SEED)
    held_out = Words(rng, words.HELD_OUT)
    makers = (stories.story, stories.dialogue, stories.scene)
    texts = [makers[i % len(makers)](held_out) for i in range(STORIES)]
    (HERE / "stories.txt").write_text("\n\f\n".join(texts) + "\n", "utf-8")

    tokenizer = Tokenizer(HERE.parents[2] / "models/osdn-mini/tokenizer.model")
    lines = []
    for _ in range(CONVERSATIONS):
        ids = [1]
        for message in chat.examination(held_out, (3, 8)):
            ids += tokenizer.message(message)
        lines.append(" ".join(map(str, ids)))
    (HERE / "conversations.ids").write_text("\n".join(lines) + "\n", "utf-8")

    chapters = []
    for paragraphs in Prose(Path(sys.argv[1]), words.HELD_OUT).documents[:CHAPTERS]:
        kept = ""
        for paragraph in paragraphs:
            if len(kept) + len(paragraph) > CHAPTER_CHARACTERS and kept:
                break
            kept += paragraph + "\n\n"
        chapters.append(kept.strip())
    (HERE / "prose.txt").write_text("\n\f\n".join(chapters) + "\n", "utf-8")


if __name__ == "__main__":
    main()
