"""Short stories from a plot grammar: a hero, a wish, a trouble, a helper, an end."""

from __future__ import annotations

from random import Random

from osdn.data import words
from osdn.data.words import Words

_PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "him", "his"), "it": ("it", "it", "its")}
_TRAITS = ("clever brave shy kind lazy curious patient quiet cheerful stubborn gentle proud "
           "careful hungry lonely young old").split()
_PLACES = [
    "a small village by the sea",
    "a house at the edge of the forest",
    "a valley between two mountains",
    "a narrow street behind the market",
    "a mill beside the river",
    "a cottage on a windy hill",
    "a tower above the harbour",
    "a farm at the end of a long road",
]
_OPENINGS = [
    "Once upon a time there was {a_hero} called {name}.",
    "Long ago, in {place}, there lived {a_hero} named {name}.",
    "{name} was {a_hero} who lived in {place}.",
    "There once was {a_hero} whose name was {name}.",
    "In {place} there lived {a_hero}. Everybody called {him} {name}.",
]
_HABITS = [
    "Every morning {he} walked to the well and counted the birds on the roof.",
    "{He} liked {food} more than anything else.",
    "{He} worked from dawn until the evening bell and never complained.",
    "Most days {he} sat by the window and watched the clouds.",
    "The neighbours said that {he} was the most {trait} creature they had ever met.",
    "On {day}s {he} went to the market with {his} friend {friend}.",
    "In the evenings {he} told stories to anyone who would listen.",
    "{He} knew every stone of the path and every tree beside it.",
]
_WISHES = [
    "More than anything {he} wanted to find {a_thing}.",
    "One day {he} heard about {a_thing} that was hidden in {place2}.",
    "{He} had lost {his} {thing}, and nobody knew where it was.",
    "An old letter said that {a_thing} lay under the stones of the {spot}.",
    "{His} friend {friend} had asked {him} to bring {a_thing} before {season}.",
    "{He} dreamed about {a_thing} for three nights, and on the fourth day {he} set out.",
]
_TROUBLES = [
    "But the bridge was broken, and the water was cold and fast.",
    "On the way a storm came up, and the rain fell until the road was gone.",
    "At the gate stood {a_beast} who let nobody pass.",
    "Soon it grew dark, and {he} could not see the path any more.",
    "When {he} arrived at the {spot}, the door was locked.",
    "Halfway there {he} fell into a ditch and hurt {his} foot.",
    "The snow was so deep that {he} could hardly walk.",
]
_FEELINGS = [
    "{He} sat down on a stone and wondered what to do.",
    "For a moment {he} thought about going home.",
    "{He} was afraid, but {he} did not turn back.",
    '"I must not give up now," said {name}.',
    '"There must be another way," {he} thought.',
    "{He} took a deep breath and counted slowly to ten.",
]
_HELPERS = [
    "Then {a_beast2} came along and asked why {he} looked so sad.",
    "Just then {a_job} came down the road with a {colour} cart.",
    "A little later {friend} found {him} there.",
    "Behind a tree {he} noticed {a_beast2} with a {colour} hat.",
    "An old woman opened her window and called to {him}.",
]
_TALKS = [
    '"What is the matter?" asked the stranger. "I am looking for the {thing}," {name} answered.',
    '"Can you help me?" asked {name}. "I can, if you share your {food} with me," was the answer.',
    "{name} told the whole story, from the beginning to the end.",
    '"Follow me," said the stranger, "I know this place well."',
    "They shared a piece of bread and talked for a while.",
]
_TURNS = [
    "Together they climbed over the wall and looked behind the {spot}.",
    "They made a rope from an old blanket and crossed the water safely.",
    "They waited until the moon was high, and then the way was easy to see.",
    "They pushed with all their strength, and at last the door opened.",
    "They asked at every house until a child pointed at the {spot}.",
    "They followed the {colour} stones until they reached the {spot}.",
]
_FINDS = [
    "There, under a pile of leaves, lay the {thing}.",
    "And there it was: the {thing}, as good as new.",
    "In a corner of the {spot} stood the {thing}, covered with dust.",
    "The {thing} was exactly where the letter had said.",
    "Inside a {colour} box they found the {thing}.",
]
_ENDS = [
    "{name} was so happy that {he} danced all the way home.",
    "From that day on they were good friends.",
    "That night {name} slept better than ever before.",
    "When {he} came home, everybody wanted to hear what had happened.",
    "And whenever it rained, {name} remembered that day and smiled.",
    "{He} learned that a friend is worth more than {a_thing}.",
    "They ate {food} together and laughed until midnight.",
]
_MORALS = [
    "And so the story ends.",
    "Since then nobody in the village has locked a door.",
    "If you go there today, you can still see the {thing}.",
    "It was the best {season} of all.",
]


def article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def story(w: Words, topic: str | None = None, length: int | None = None) -> str:
    """A story; topic is an animal, a job or an object that it is about."""
    rng = w.rng
    name, friend = w.names(2)
    pronoun = rng.choice(["she", "he"])
    hero = topic if topic in words.ANIMALS + words.JOBS else rng.choice(words.ANIMALS + words.JOBS)
    thing = topic if topic in words.OBJECTS else rng.choice(words.OBJECTS)
    he, him, his = _PRONOUNS[pronoun]
    trait = rng.choice(_TRAITS)
    beast, beast2 = rng.sample(words.ANIMALS, 2)
    place, place2 = rng.sample(_PLACES, 2)
    fields = {"name": name, "friend": friend, "he": he, "him": him, "his": his,
              "He": he.capitalize(), "His": his.capitalize(), "place": place, "place2": place2,
              "a_hero": article(f"{trait} {hero}"), "trait": rng.choice(_TRAITS),
              "thing": thing, "a_thing": article(thing), "food": rng.choice(words.FOODS),
              "day": rng.choice(words.DAYS), "season": rng.choice(words.SEASONS),
              "spot": rng.choice(words.PLACES), "colour": rng.choice(words.COLOURS),
              "a_beast": article(f"{rng.choice(_TRAITS)} {beast}"),
              "a_beast2": article(f"{rng.choice(_TRAITS)} {beast2}"),
              "a_job": article(rng.choice(words.JOBS))}

    def tell(options: list[str], count: int = 1) -> str:
        return " ".join(o.format(**fields) for o in rng.sample(options, count))

    size = rng.randint(1, 3) if length is None else length
    parts = [tell(_OPENINGS) + " " + tell(_HABITS, size)]
    parts.append(tell(_WISHES) + " " + tell(_TROUBLES) + " " + tell(_FEELINGS))
    if size > 1:
        parts.append(tell(_HELPERS) + " " + tell(_TALKS, size - 1) + " " + tell(_TURNS))
    parts.append(tell(_FINDS) + " " + tell(_ENDS, min(size, 2)))
    if rng.random() < 0.3:
        parts[-1] += " " + tell(_MORALS)
    return ("\n\n" if rng.random() < 0.4 else " ").join(parts)


_GREETINGS = [
    "Good morning, {b}.",
    "Hello, {b}. You are early today.",
    "There you are, {b}!",
    "{b}, may I ask you something?",
    "How nice to see you, {b}.",
]
_TOPICS = [
    "Have you seen my {thing}?",
    "Did you hear about the {job} in {town}?",
    "I am going to the market. Do you need anything?",
    "It will rain tonight.",
    "I cooked {food} this morning.",
    "Why is the {spot} always locked?",
    "My {animal} ran away again.",
]
_REPLIES = [
    "I think it is in the {spot}.",
    "Yes, everybody talks about it.",
    "Bring me some {food}, please.",
    "Then we should stay at home.",
    "I did not know that.",
    "Ask {c}. {c} knows everything.",
    "Maybe tomorrow.",
    "That is good news.",
    "I would rather have {food}.",
    "We can look for it together.",
]
_SAID = "said asked answered replied whispered called".split()


def dialogue(w: Words) -> str:
    """Two people talk; every line names its speaker or follows the turn."""
    rng = w.rng
    a, b, c = w.names(3)
    lines = []
    for turn in range(rng.randint(3, 9)):
        speaker, other = (a, b) if turn % 2 == 0 else (b, a)
        options = _GREETINGS if turn == 0 else (_TOPICS if turn % 2 == 0 else _REPLIES)
        text = rng.choice(options).format(
            b=other, c=c, thing=rng.choice(words.OBJECTS), job=rng.choice(words.JOBS),
            town=w.town(), food=rng.choice(words.FOODS), spot=rng.choice(words.PLACES),
            animal=rng.choice(words.ANIMALS))
        verb = "asked" if text.endswith("?") else rng.choice(_SAID[:1] + _SAID[2:])
        if text.endswith("."):
            text = text[:-1] + ","
        lines.append(f'"{text}" {verb} {speaker}.')
    return "\n".join(lines)


_SCENES = [
    "{name} opened the window and looked at the {spot}.",
    "The {colour} {thing} on the table belonged to {name}.",
    "It had been a cold {season}, and the road to {town} was empty.",
    "Nobody in {town} remembered who had built the {spot}.",
    "On {day} the {job} bought two baskets of {food}.",
    "The {animal} slept under the table while {name} cooked {food}.",
    "Outside, a {trait} {animal} waited for the rain to stop.",
    "{name} had never been to {town} before.",
    "After supper they put the {thing} back in the {spot}.",
    "The {job} said that the {thing} was older than the house.",
    "Every {season} the people of {town} paint their doors {colour}.",
    "When the bell rang, {name} was already in the {spot}.",
]


def scene(w: Words) -> str:
    """Loose sentences of everyday life about one place and one person."""
    rng = w.rng
    name, town = w.name(), w.town()
    return " ".join(
        o.format(name=name, town=town, spot=rng.choice(words.PLACES),
                 colour=rng.choice(words.COLOURS), thing=rng.choice(words.OBJECTS),
                 season=rng.choice(words.SEASONS), day=rng.choice(words.DAYS),
                 job=rng.choice(words.JOBS), food=rng.choice(words.FOODS),
                 animal=rng.choice(words.ANIMALS), trait=rng.choice(_TRAITS))
        for o in rng.sample(_SCENES, rng.randint(3, 7)))


def pick_topic(rng: Random) -> str:
    return rng.choice(words.ANIMALS + words.JOBS + words.OBJECTS)
