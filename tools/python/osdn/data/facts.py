"""Facts that can be told and asked: wordings of statement, question and the one exact answer.

A template's {poss} is "Mirela's", "my" or, in the assistant's mouth, "your"; {subj} likewise;
verbs agree through {has}, {is} and {s}. A few pairs of statement and question wording are held out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random

from osdn.data import words
from osdn.data.words import Words


@dataclasses.dataclass(frozen=True)
class Kind:
    """One relation: how to draw a value, how to say and ask it, and what to answer."""

    name: str  # "locker number": "I do not know Mirela's locker number."
    value: Callable[[Words], str]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    reverse: tuple[str, str] | None = None  # question and answer from the value to the person
    thing: bool = False  # about an object instead of a person


def _noun(name: str, value: Callable[[Words], str], statements: tuple[str, ...],
          questions: tuple[str, ...], reverse: tuple[str, str] | None = None) -> Kind:
    """A possessed noun: "Mirela's locker number is 4817."."""
    return Kind(name, value,
                (f"{{poss}} {name} is {{v}}.", *statements),
                (f"What is {{poss}} {name}?", f"Can you tell me {{poss}} {name}?",
                 f"Do you remember {{poss}} {name}?", *questions),
                f"{{poss}} {name} is {{v}}.", reverse)


def _number(name: str, digits: int, statements: tuple[str, ...],
            questions: tuple[str, ...]) -> Kind:
    return _noun(name, lambda w: w.number(digits), statements, questions,
                 (f"Whose {name} is {{v}}?", f"{{v}} is {{poss}} {name}."))


def _pick(options: list[str]) -> Callable[[Words], str]:
    return lambda w: w.rng.choice(options)


KINDS: tuple[Kind, ...] = (
    _number("locker number", 4, ("{subj} {has} locker {v}.", "{subj} keep{s} things in locker {v}.",
                                 "For {subj_obj} it is locker {v}."),
            ("Which locker {does} {subj} have?",)),
    _number("room number", 3, ("{subj} {is} staying in room {v}.", "You can find {subj_obj} in "
                               "room {v}."), ("Which room {is} {subj} staying in?",)),
    _number("badge number", 5, ("{subj} {has} a badge with the number {v}.",
                                "The number on {poss} badge is {v}."),
            ("Which number is on {poss} badge?",)),
    _number("door code", 4, ("The code for {poss} door is {v}.", "{subj} open{s} the door with the "
                             "code {v}."), ("Which code opens {poss} door?",)),
    _number("phone extension", 4, ("To call {subj_obj}, dial {v}.", "{subj} can be called on {v}."),
            ("What do I dial to call {subj_obj}?", "Which extension {does} {subj} have?")),
    _number("desk number", 3, ("{subj} sit{s} at desk {v}.", "Desk {v} is where {subj} work{s}."),
            ("At which desk {does} {subj} sit?",)),
    _number("bus line", 2, ("{subj} take{s} bus {v}.", "{subj} come{s} to work by bus {v}."),
            ("Which bus {does} {subj} take?",)),
    _noun("age", lambda w: str(w.rng.randint(5, 98)), ("{subj} {is} {v} years old.",
                                                       "{subj} turned {v} this year."),
          ("How old {is} {subj}?",)),
    _noun("birthday", Words.date, ("{subj} {was} born on {v}.", "{subj} celebrate{s} on {v}."),
          ("When is {poss} birthday?", "When {was} {subj} born?")),
    _noun("favourite colour", _pick(words.COLOURS),
          ("The colour {subj} like{s} best is {v}.", "{subj} love{s} the colour {v}."),
          ("Which colour {does} {subj} like best?",)),
    _noun("favourite food", _pick(words.FOODS),
          ("{subj} like{s} {v} best of all.", "Nothing tastes better to {subj_obj} than {v}."),
          ("What {does} {subj} like to eat best?",)),
    _noun("favourite drink", _pick(words.DRINKS),
          ("{subj} would always choose {v} to drink.", "{subj} drink{s} {v} every day."),
          ("What {does} {subj} like to drink?",)),
    _noun("favourite season", _pick(words.SEASONS),
          ("{subj} like{s} {v} more than any other season.",),
          ("Which season {does} {subj} like best?",)),
    _noun("home town", Words.town, ("{subj} live{s} in {v}.", "{subj} come{s} from {v}.",
                                    "{subj} moved to {v} some years ago."),
          ("Where {does} {subj} live?", "In which town {does} {subj} live?")),
    _noun("job", lambda w: "a " + w.rng.choice(words.JOBS),
          ("{subj} {is} {v}.", "{subj} work{s} as {v}.", "{subj} earn{s} a living as {v}."),
          ("What {does} {subj} do for a living?",)),
    _noun("instrument", lambda w: "the " + w.rng.choice(words.INSTRUMENTS),
          ("{subj} play{s} {v}.", "{subj} {is} learning to play {v}."),
          ("Which instrument {does} {subj} play?",)),
    _noun("favourite sport", _pick(words.SPORTS),
          ("{subj} spend{s} every weekend on {v}.", "{subj} like{s} {v} more than other sports."),
          ("Which sport {does} {subj} like best?",)),
    _noun("second language", _pick(words.LANGUAGES),
          ("{subj} also speak{s} {v}.", "{subj} learned {v} at school."),
          ("Which other language {does} {subj} speak?",)),
    *(_noun(f"{animal}'s name", Words.name,
            (f"{{subj}} {{has}} a {animal} called {{v}}.", f"{{poss}} {animal} is called {{v}}."),
            (f"What is {{poss}} {animal} called?",)) for animal in ("cat", "dog", "horse", "goat")),
    *(_noun(f"{relative}'s name", Words.name,
            (f"{{subj}} {{has}} a {relative} called {{v}}.",
             f"{{poss}} {relative} is called {{v}}."),
            (f"What is {{poss}} {relative} called?", f"Who is {{poss}} {relative}?"))
      for relative in ("sister", "brother", "neighbour", "teacher")),
    _noun("password", Words.password, ("{subj} chose the password {v}.",
                                       "The password {subj} use{s} is {v}."),
          ("Which password {does} {subj} use?",)),
    _noun("appointment", lambda w: "at " + w.time(),
          ("{subj} {has} an appointment {v}.", "The doctor will see {subj_obj} {v}."),
          ("When is {poss} appointment?",)),
    Kind("place", lambda w: "in the " + w.rng.choice(words.PLACES),
         ("The {subj} is {v}.", "I put the {subj} {v}.", "You will find the {subj} {v}.",
          "Somebody left the {subj} {v}."),
         ("Where is the {subj}?", "Where can I find the {subj}?",
          "Do you know where the {subj} is?",
          "Tell me where the {subj} is."),
         "The {subj} is {v}.", thing=True),
    Kind("price", lambda w: w.number(3) + " coins",
         ("The {subj} costs {v}.", "The price of the {subj} is {v}.", "Somebody paid {v} for the "
          "{subj}.", "They ask {v} for the {subj}."),
         ("How much is the {subj}?", "What is the price of the {subj}?", "How much does the {subj} "
          "cost?", "Tell me the price of the {subj}."),
         "The {subj} costs {v}.", thing=True),
    Kind("owner", Words.name,
         ("The {subj} belongs to {v}.", "The owner of the {subj} is {v}.",
          "{v} is the owner of the {subj}.", "It is {v} who owns the {subj}."),
         ("Who owns the {subj}?", "To whom does the {subj} belong?", "Who is the owner of the "
          "{subj}?", "Tell me who owns the {subj}."),
         "The {subj} belongs to {v}.", thing=True),
)
USER_NAME = Kind("name", Words.name,
                 ("{poss} name is {v}.", "Hello, I am {v}.", "You can call me {v}.",
                  "People call me {v}."),
                 ("What is my name?", "Do you remember my name?", "Who am I?",
                  "Can you tell me my name?"),
                 "{poss} name is {v}.")

UPDATES = ("{now}", "Correction: {now}", "That has changed: {now}", "I was wrong before. {now}",
           "Here is an update: {now}", "Forget what I said before. {now}")

ME = "I"


def _words_for(subject: str, speaker: str) -> dict[str, str]:
    """Pronouns and verb endings; speaker is who says the sentence."""
    if subject == ME:
        own, other = ("I", "me") if speaker == "user" else ("you", "you")
        return {"subj": own, "subj_obj": other, "poss": "my" if speaker == "user" else "your",
                "s": "", "has": "have", "is": "am" if speaker == "user" else "are",
                "does": "do", "was": "was" if speaker == "user" else "were"}
    return {"subj": subject, "subj_obj": subject, "poss": subject + "'s", "s": "s", "has": "has",
            "is": "is", "does": "does", "was": "was"}


def say(template: str, subject: str, value: str, speaker: str) -> str:
    """Fills a template and capitalises its beginning."""
    text = template.format(v=value, **_words_for(subject, speaker))
    return text[0].upper() + text[1:]


@dataclasses.dataclass
class Fact:
    """One told fact and the index of the wording in which it was told."""

    kind: Kind
    subject: str
    value: str
    wording: int

    def statement(self) -> str:
        return say(self.kind.statements[self.wording], self.subject, self.value, "user")

    def question(self, rng: Random, split: str) -> str:
        """A wording whose pair with the statement's belongs to the split."""
        options = [q for i, q in enumerate(self.kind.questions)
                   if pair_split(self.wording, i) == split] or list(self.kind.questions)
        return say(rng.choice(options), self.subject, self.value, "user")

    def answer(self) -> str:
        return say(self.kind.answer, self.subject, self.value, "assistant")

    def unknown(self) -> str:
        """The answer when this fact was never told."""
        if self.kind.thing:
            return f"I do not know the {self.kind.name} of the {self.subject}."
        own = "your" if self.subject == ME else f"{self.subject}'s"
        return f"I do not know {own} {self.kind.name}."


def pair_split(statement: int, question: int) -> str:
    """Which split a pair of wordings belongs to; every statement keeps training questions."""
    return words.HELD_OUT if (statement + 2 * question) % 5 == 0 else words.TRAIN


def draw_fact(w: Words, split: str, subjects: list[str], things: list[str],
              kinds: int | None = None) -> Fact:
    """A fact of a random kind about one of the subjects; kinds limits the variety."""
    pool = KINDS[:kinds] if kinds else KINDS
    kind = w.rng.choice(pool)
    subject = w.rng.choice(things if kind.thing else subjects)
    if subject == ME and w.rng.random() < 0.25:
        kind = USER_NAME
    wordings = [i for i in range(len(kind.statements)) if split == words.TRAIN or any(
        pair_split(i, j) == split for j in range(len(kind.questions)))]
    return Fact(kind, subject, kind.value(w), w.rng.choice(wordings))
