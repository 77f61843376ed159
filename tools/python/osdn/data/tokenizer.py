"""The tokenizer and the chat format: which ids a conversation or a document is."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from osdn.data.chat import Message

ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
END = "<|end|>"
CONTROL_SYMBOLS = [*ROLES.values(), END]
BOS, EOS = 1, 2


class Tokenizer:
    """SentencePiece plus role tokens; every content is encoded on its own."""

    def __init__(self, path: Path) -> None:
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.roles = {role: self.model.piece_to_id(piece) for role, piece in ROLES.items()}
        self.end = self.model.piece_to_id(END)

    def encode(self, text: str) -> list[int]:
        return self.model.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.model.decode(ids)

    def document(self, text: str) -> list[int]:
        return [BOS, *self.encode(text), EOS]

    def message(self, message: Message) -> list[int]:
        return [self.roles[message.role], *self.encode(message.text), self.end]

    def prompt(self, messages: list[Message]) -> list[int]:
        """The conversation so far, ready for the assistant to answer."""
        ids = [BOS]
        for message in messages:
            ids += self.message(message)
        return [*ids, self.roles["assistant"]]
