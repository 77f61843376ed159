"""Scores a checkpoint: recall on held-out conversations, perplexity on held-out prose, samples."""

from __future__ import annotations

import argparse
import collections
import json
import math
import time
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F

from osdn.data import chat, words
from osdn.data.corpus import Prose
from osdn.data.tokenizer import EOS, Tokenizer
from osdn.data.words import Words
from osdn.model import LanguageModel, load

PROMPTS = ("Once upon a time", "The old man walked down to the harbour", "It is a truth",
           "In the morning, Elizabeth")
REQUESTS = ("Hello!", "Tell me a story about a fox.", "Name four fruits.", "What is 7 + 5?",
            "Who are you?", "Count from 4 to 9.", "Repeat this: Vashtonel 90417")


def recall(model: LanguageModel, tokenizer: Tokenizer, conversations: list[list[chat.Message]],
           batch: int) -> dict[str, object]:
    """Greedy answers to every exact question, the true history before it; counts by kind."""
    cases = []
    for number, messages in enumerate(conversations):
        for index, message in enumerate(messages):
            if message.role == "assistant" and message.kind:
                cases.append((number, tokenizer.prompt(messages[:index]), message))
    cases.sort(key=lambda case: len(case[1]))
    exact, present = collections.Counter(), collections.Counter()
    total, wrong, failed = collections.Counter(), [], set()
    for start in range(0, len(cases), batch):
        part = cases[start:start + batch]
        limit = max(len(tokenizer.encode(message.text)) for _, _, message in part) + 4
        answers = model.generate([ids for _, ids, _ in part], limit, {tokenizer.end, EOS})
        for (number, _, message), ids in zip(part, answers, strict=True):
            answer = tokenizer.decode(ids)
            total[message.kind] += 1
            exact[message.kind] += answer == message.text
            present[message.kind] += bool(message.value) and message.value in answer
            if answer != message.text:
                wrong.append((message.text, answer))
                if message.kind == "recall":
                    failed.add(number)
    kinds = {kind: {"asked": total[kind], "exact": exact[kind] / total[kind],
                    "value": present[kind] / total[kind]} for kind in sorted(total)}
    return {"conversations": len(conversations), "longest_prompt": len(cases[-1][1]),
            "conversations_all_right": 1 - len(failed) / len(conversations),
            "kinds": kinds, "wrong": wrong[:12]}


@torch.no_grad()
def perplexity(model: LanguageModel, tokenizer: Tokenizer, prose: Path, limit: int,
               context: int) -> dict[str, float]:
    """Per token and per character, over the held-out documents cut into pieces of the context."""
    device = model.model.embeddings.weight.device
    nats, tokens, characters = 0.0, 0, 0
    for document in Prose(prose, words.HELD_OUT).documents:
        text = "\n\n".join(document)
        ids = tokenizer.document(text)[:limit]
        characters += len(tokenizer.decode(ids))
        state = None
        for start in range(0, len(ids) - 1, context):
            part = torch.tensor([ids[start:start + context + 1]], device=device)
            logits, state = model(part[:, :-1], state)
            nats += F.cross_entropy(logits[0].float(), part[0, 1:], reduction="sum").item()
        tokens += len(ids) - 1
    return {"perplexity": math.exp(nats / tokens), "bits_per_character": nats / math.log(2)
            / characters, "tokens": tokens}


def exams(count: int, seed: int, facts: tuple[int, int]) -> list[list[chat.Message]]:
    rng = Random(seed)
    return [chat.examination(Words(rng, words.HELD_OUT), facts) for _ in range(count)]


def mixed(count: int, seed: int, repeats: int = 1) -> list[list[chat.Message]]:
    """Held-out conversations as in training: updates, unknown and reverse questions too."""
    rng = Random(seed)
    level = chat.Difficulty(facts=(3, 8), special=0.3, repeats=repeats)
    return [chat.conversation(Words(rng, words.HELD_OUT), words.HELD_OUT, level)
            for _ in range(count)]


def samples(model: LanguageModel, tokenizer: Tokenizer, length: int) -> dict[str, str]:
    """Continuations of plain text (greedy and at temperature 0.7) and answers to requests."""
    result = {}
    for prompt in PROMPTS:
        ids = tokenizer.document(prompt)[:-1]
        for temperature in (0.0, 0.7):
            out = model.generate([ids], length, {EOS, tokenizer.end}, temperature)[0]
            result[f"{prompt} [{temperature}]"] = tokenizer.decode(ids[1:] + out)
    for request in REQUESTS:
        ids = tokenizer.prompt([chat.Message("user", request)])
        result[request] = tokenizer.decode(model.generate([ids], length, {EOS, tokenizer.end})[0])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="default: the model folder's")
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--long", action="store_true", help="also conversations of about 4k tokens")
    parser.add_argument("--samples", type=int, default=120, help="tokens a sample")
    parser.add_argument("--prose-tokens", type=int, default=4096, help="at most, a document")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="write the report as JSON")
    args = parser.parse_args()
    started = time.monotonic()
    tokenizer = Tokenizer(args.tokenizer or args.model / "tokenizer.model")
    model = load(args.model).to(args.device)
    report = {
        "recall": recall(model, tokenizer, exams(args.conversations, args.seed, (3, 8)),
                         args.batch),
        "mixed": recall(model, tokenizer, mixed(args.conversations // 2, args.seed), args.batch),
        "prose": perplexity(model, tokenizer, args.prose, args.prose_tokens, 1024)}
    if args.long:
        report["long"] = recall(model, tokenizer, mixed(8, args.seed, repeats=12), args.batch)
    if args.samples:
        report["samples"] = samples(model, tokenizer, args.samples)
    report["seconds"] = time.monotonic() - started
    text = json.dumps(report, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
