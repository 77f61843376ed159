"""Conversations: facts told and asked for, with small talk, sums, lists and stories between."""

from __future__ import annotations

import dataclasses

from osdn.data import stories, words
from osdn.data.facts import KINDS, ME, UPDATES, USER_NAME, Fact, draw_fact
from osdn.data.words import Words

PLAIN, EXACT = 1, 2  # a message's weight class: EXACT answers count more in the loss


@dataclasses.dataclass
class Message:
    """One turn. kind says what an exact answer tests: recall, update, unknown, ..."""

    role: str
    text: str
    weight: int = PLAIN
    kind: str = ""
    value: str = ""


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """What the curriculum widens: facts and questions a conversation, names, kinds, the rest."""

    facts: tuple[int, int] = (3, 8)
    pool: int | None = None
    kinds: int | None = None
    distraction: float = 0.3
    special: float = 0.1  # share of updates, unknown and reverse questions
    repeats: int = 1  # how often the plan of tell, ask is gone through


SYSTEMS = ("You are a helpful assistant.", "You are a careful assistant. Answer briefly.",
           "You remember what the user tells you and answer exactly.",
           "Answer in one short sentence.", "You are a friendly assistant with a good memory.")
ACKS = ("Noted.", "Got it.", "I will remember that.", "Thank you, I will keep that in mind.",
        "All right.", "Understood.", "Thank you for telling me.", "Good to know.")
LEADS = ("", "", "", "", "By the way, ", "Please remember this: ", "Just so you know: ",
         "For later: ", "One more thing: ", "Also, ", "I should tell you something. ",
         "Let me tell you something. ", "Note this: ")
ASKS = ("", "", "", "", "", "Quick question: ", "Tell me, ", "I forgot. ", "Now, ",
        "One question. ", "Help me remember. ", "And ")
SMALL_FIRST = "The You My To Nothing It Somebody They For".split()  # "By the way, the ..."
TALK = (("Hello!", "Hello! How can I help you today?"), ("Hi there.", "Hi! What can I do for you?"),
        ("Good morning!", "Good morning! How can I help you?"),
        ("How are you?", "I am fine, thank you. How are you?"),
        ("Thank you.", "You are welcome."), ("Thanks a lot!", "You are welcome."),
        ("Who are you?", "I am a small assistant. I remember what you tell me."),
        ("What can you do?", "I can remember facts, tell short stories, make lists and do sums."),
        ("That is all for now.", "All right. Ask me whenever you like."),
        ("What a nice day.", "It is. I hope you enjoy it."),
        ("I am tired today.", "I am sorry to hear that. Have some rest."),
        ("I am bored.", "Shall I tell you a story?"), ("Goodbye.", "Goodbye! See you soon."),
        ("Are you a person?", "No, I am a small language model."),
        ("Do you like music?", "I cannot hear it, but I like to read about it."),
        ("It is raining again.", "Then take an umbrella with you."),
        ("I have to go to work soon.", "I hope that you have a good day at work."))
LISTS = {"fruits": words.FRUITS, "animals": words.ANIMALS, "colours": words.COLOURS,
         "tools": words.TOOLS, "drinks": words.DRINKS, "jobs": words.JOBS, "sports": words.SPORTS,
         "instruments": words.INSTRUMENTS, "things for a journey": words.OBJECTS}
COUNTS = "zero one two three four five six seven eight nine ten".split()


def talk(w: Words) -> list[Message]:
    question, answer = w.rng.choice(TALK)
    return [Message("user", question), Message("assistant", answer)]


def sums(w: Words) -> list[Message]:
    """Small arithmetic, answered with the whole equation."""
    rng = w.rng
    sign = rng.choice("+-*")
    top = 10 if sign == "*" else rng.choice([10, 20, 50])
    a, b = rng.randint(0, top), rng.randint(0, top)
    if sign == "-" and b > a:
        a, b = b, a
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    word = {"+": "plus", "-": "minus", "*": "times"}[sign]
    question = rng.choice([f"What is {a} {sign} {b}?", f"How much is {a} {word} {b}?",
                           f"Calculate {a} {sign} {b}."])
    return [Message("user", question),
            Message("assistant", f"{a} {sign} {b} = {result}.", EXACT, "sum", str(result))]


def lists(w: Words) -> list[Message]:
    """A list request, or counting."""
    rng = w.rng
    if rng.random() < 0.25:
        first, count = rng.randint(1, 30), rng.randint(3, 9)
        numbers = ", ".join(map(str, range(first, first + count)))
        return [Message("user", f"Count from {first} to {first + count - 1}."),
                Message("assistant", numbers + ".", EXACT, "count", numbers)]
    what = rng.choice(list(LISTS))
    count = rng.randint(2, 6)
    items = rng.sample(LISTS[what], count)
    numbered = rng.random() < 0.5
    ask = rng.choice(["Name {n} {what}.", "List {n} {what}.", "Give me a list of {n} {what}.",
                      "Tell me {n} {what}."]).format(n=COUNTS[count], what=what)
    if numbered:
        return [Message("user", ask + " Number them."),
                Message("assistant", "\n".join(f"{i}. {x}" for i, x in enumerate(items, 1)))]
    return [Message("user", ask),
            Message("assistant", (", ".join(items[:-1]) + " and " + items[-1] + ".").capitalize())]


def tale(w: Words) -> list[Message]:
    topic = stories.pick_topic(w.rng)
    ask = w.rng.choice(["Tell me a story about {t}.", "Tell me a short story about {t}.",
                        "Can you tell me a story about {t}?", "Write a story about {t}."])
    return [Message("user", ask.format(t=stories.article(topic))),
            Message("assistant", stories.story(w, topic, w.rng.choice([1, 1, 2])))]


def repeat(w: Words) -> list[Message]:
    """Copying, the skill that recall is made of."""
    rng = w.rng
    text = rng.choice([
        lambda: " ".join(w.names(rng.randint(1, 4))), lambda: w.number(rng.randint(3, 6)),
        lambda: f"{w.name()} {w.number(4)}", lambda: " ".join(rng.sample(words.OBJECTS, 3)),
        lambda: f"{w.password()} {w.town()}"])()
    ask = rng.choice(["Repeat this: {t}", "Say this again: {t}", "Repeat after me: {t}"])
    return [Message("user", ask.format(t=text)), Message("assistant", text, EXACT, "copy", text)]


def distraction(w: Words) -> list[Message]:
    makers = (talk, talk, sums, lists, repeat, tale)
    return w.rng.choices(makers, (5, 5, 5, 3, 3, 1))[0](w)


class Plan:
    """One conversation's facts: tells them turn by turn and asks about those told so far."""

    def __init__(self, w: Words, split: str, level: Difficulty) -> None:
        self.w, self.split, self.level = w, split, level
        rng = w.rng
        count = rng.randint(*level.facts)
        people = w.names(max(2, rng.randint((count + 1) // 2, count)))
        subjects = people + ([ME] if rng.random() < 0.4 else [])
        things = rng.sample(words.OBJECTS, min(len(words.OBJECTS), max(2, count // 2)))
        facts: dict[tuple[str, str], Fact] = {}
        values: set[str] = set()
        while len(facts) < count:
            fact = draw_fact(w, split, subjects, things, level.kinds)
            if (fact.subject, fact.kind.name) not in facts:
                facts[fact.subject, fact.kind.name] = fact
                values.add(fact.value)
        self.waiting = list(facts.values())
        self.told: list[Fact] = []
        self.updated: set[int] = set()
        self.unasked: list[int] = []

    def tell(self) -> list[Message]:
        """One to three facts in one turn, and the acknowledgement."""
        rng = self.w.rng
        count = min(len(self.waiting), rng.choice([1, 1, 1, 2, 2, 3]))
        facts = [self.waiting.pop() for _ in range(count)]
        self.unasked += range(len(self.told), len(self.told) + count)
        rng.shuffle(self.unasked)
        self.told += facts
        text = " ".join(fact.statement() for fact in facts)
        lead = rng.choice(LEADS)
        if lead.endswith(", ") and text.split()[0] in SMALL_FIRST:
            text = text[0].lower() + text[1:]
        ack = rng.choice(ACKS)
        if rng.random() < 0.12:
            ack = "Noted: " + facts[-1].answer()
        weight = EXACT if ack.startswith("Noted: ") else PLAIN
        return [Message("user", lead + text), Message("assistant", ack, weight)]

    def update(self) -> list[Message]:
        """A new value for a fact already told; the old one must not be answered any more."""
        rng = self.w.rng
        index = rng.randrange(len(self.told))
        old = self.told[index]
        fact = dataclasses.replace(old, value=old.kind.value(self.w))
        if fact.value == old.value or fact.kind is USER_NAME:
            return []
        self.told[index] = fact
        self.updated.add(index)
        now = rng.choice(UPDATES).format(now=fact.statement())
        return [Message("user", now), Message("assistant", rng.choice(ACKS))]

    def ask(self) -> list[Message]:
        """A question about what was told, now and then about what was not."""
        rng = self.w.rng
        if rng.random() < self.level.special * 0.5:
            return self.ask_unknown()
        # Every fact once before any is asked again: a repeated question tests little.
        self.unasked = self.unasked or rng.sample(range(len(self.told)), len(self.told))
        index = self.unasked.pop()
        fact = self.told[index]
        unique = sum(f.value == fact.value for f in self.told) == 1
        if (fact.kind.reverse and unique and fact.subject != ME
                and rng.random() < self.level.special):
            question, answer = (t.format(v=fact.value, poss=fact.subject + "'s")
                                for t in fact.kind.reverse)
            return [Message("user", question),
                    Message("assistant", answer, EXACT, "reverse", fact.subject)]
        question = fact.question(rng, self.split)
        lead = rng.choice(ASKS)
        if lead.endswith(("Tell me, ", ": ", "Now, ", "And ")) and not question.startswith(
                ("Tell me", "Do you", "Can you")):
            question = lead + question[0].lower() + question[1:]
        elif lead.endswith(". "):
            question = lead + question
        kind = "update" if index in self.updated else "recall"
        return [Message("user", question),
                Message("assistant", fact.answer(), EXACT, kind, fact.value)]

    def ask_unknown(self) -> list[Message]:
        rng = self.w.rng
        known = {(f.subject, f.kind.name) for f in self.told + self.waiting}
        subjects = sorted({f.subject for f in self.told if f.subject != ME and not f.kind.thing})
        kind = rng.choice([k for k in KINDS if not k.thing])
        subject = rng.choice(subjects) if subjects and rng.random() < 0.6 else self.w.name()
        if (subject, kind.name) in known:
            return []
        fact = Fact(kind, subject, "", 0)
        return [Message("user", fact.question(rng, self.split)),
                Message("assistant", fact.unknown(), EXACT, "unknown")]


def conversation(w: Words, split: str, level: Difficulty) -> list[Message]:
    """Facts told and asked over several turns, distractions between."""
    rng = w.rng
    messages = []
    if rng.random() < 0.35:
        messages.append(Message("system", rng.choice(SYSTEMS)))
    for _ in range(level.repeats):
        plan = Plan(w, split, level)
        questions = rng.randint(1, len(plan.waiting) + 2)
        early = rng.random() < 0.5  # questions between the tellings, or all at the end
        while plan.waiting or questions > 0:
            if rng.random() < level.distraction:
                messages += distraction(w)
            if plan.told and rng.random() < level.special * 0.6:
                messages += plan.update()
            asks = plan.told and questions > 0 and (not plan.waiting
                                                    or (early and rng.random() < 0.4))
            messages += plan.ask() if asks else (plan.tell() if plan.waiting else [])
            questions -= bool(asks)
    return messages


def chatter(w: Words) -> list[Message]:
    """A conversation without facts: only the other skills."""
    messages = []
    if w.rng.random() < 0.3:
        messages.append(Message("system", w.rng.choice(SYSTEMS)))
    makers = (talk, sums, lists, repeat, tale)
    for _ in range(w.rng.randint(1, 5)):
        messages += w.rng.choices(makers, (3, 3, 3, 2, 3))[0](w)
    return messages


def examination(w: Words, facts: tuple[int, int] = (3, 8)) -> list[Message]:
    """A held-out conversation for scoring: all facts told first and asked for, one question each.

    Distractions stay in; updates, unknown and reverse questions are left out here.
    """
    plan = Plan(w, words.HELD_OUT, Difficulty(facts=facts, special=0.0))
    rng = w.rng
    messages = [Message("system", rng.choice(SYSTEMS))] if rng.random() < 0.35 else []
    while plan.waiting:
        if rng.random() < 0.3:
            messages += distraction(w)
        messages += plan.tell()
    for fact in rng.sample(plan.told, len(plan.told)):
        if rng.random() < 0.15:
            messages += distraction(w)
        messages += [Message("user", fact.question(rng, words.HELD_OUT)),
                     Message("assistant", fact.answer(), EXACT, "recall", fact.value)]
    return messages
