"""Names, numbers and word lists, and which of them training never sees.

Names are built of syllables so that a model cannot know them and has to copy. What is held out is
decided by a checksum of the word or number itself, so both splits are endless and disjoint.
"""

from __future__ import annotations

import zlib
from random import Random

TRAIN, HELD_OUT = "train", "held_out"

_ONSETS = ("b br c ch cl d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w y z "
           "mar bel tor lin kas dan ver sol").split()
_VOWELS = "a e i o u a e i o ai ea ia io ou".split()
_CODAS = " | | | |n|r|l|s|m|t|k|nd|th|x".split("|")
_NAME_ENDS = "a o e i us en an el is ar in ia or ette y on ina ek".split()
_TOWN_ENDS = "ton ville burg ford dale port mouth wick stad holm field bridge".split()

COLOURS = ("red blue green yellow purple orange pink brown black white grey silver golden "
           "turquoise crimson violet").split()
FOODS = ("bread cheese soup rice pasta salad pancakes apples pears cherries dumplings noodles "
         "pizza porridge beans potatoes mushrooms carrots omelettes waffles").split()
DRINKS = "tea coffee milk water lemonade cocoa cider juice".split()
ANIMALS = ("cat dog rabbit parrot goat horse hamster turtle fox owl mouse hen duck goose donkey "
           "pony lizard frog sheep pigeon").split()
JOBS = ("baker teacher carpenter nurse gardener farmer painter sailor tailor doctor plumber "
        "librarian fisherman miller potter cook clerk driver weaver beekeeper").split()
INSTRUMENTS = "piano violin flute drum guitar harp trumpet cello banjo accordion".split()
SPORTS = "tennis football chess swimming rowing skating archery fencing hockey cricket".split()
SEASONS = "spring summer autumn winter".split()
MONTHS = ("January February March April May June July August September October November "
          "December").split()
LANGUAGES = ("French German Spanish Italian Greek Polish Danish Turkish Finnish Dutch Latin "
             "Welsh").split()
OBJECTS = ("lantern key map umbrella ladder basket hammer kettle blanket mirror clock bucket "
           "compass candle rope ring whistle bell notebook telescope spoon saddle kite "
           "chessboard").split()
PLACES = ("kitchen cellar attic garden garage library hallway barn office workshop shed pantry "
          "bedroom stable tower").split()
FRUITS = "apple pear plum cherry grape lemon peach fig melon banana".split()
TOOLS = "hammer saw drill spade rake chisel file axe pliers screwdriver".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def split_of(word: str) -> str:
    """One word in five is held out."""
    return HELD_OUT if zlib.crc32(word.encode()) % 5 == 0 else TRAIN


class Words:
    """Draws names and numbers of one split; a small pool makes the easy start of training."""

    def __init__(self, rng: Random, split: str, pool: int | None = None) -> None:
        self.rng = rng
        self.split = split
        self.pool = pool

    def _draw(self, make, kind: str) -> str:
        rng = self.rng
        if self.pool is not None:
            rng = Random(f"{kind} {self.rng.randrange(self.pool)}")
        while True:
            word = make(rng)
            if split_of(word) == self.split:
                return word

    def _syllables(self, rng: Random) -> str:
        count = 1 if rng.random() < 0.6 else 2
        return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS).strip()
                       for _ in range(count))

    def name(self) -> str:
        return self._draw(lambda rng: (self._syllables(rng) + rng.choice(_ONSETS)
                                       + rng.choice(_NAME_ENDS)).capitalize(), "name")

    def names(self, count: int) -> list[str]:
        """Different names."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[self.name()] = None
        return list(found)

    def town(self) -> str:
        return self._draw(lambda rng: (self._syllables(rng)
                                       + rng.choice(_TOWN_ENDS)).capitalize(), "town")

    def password(self) -> str:
        return self._draw(lambda rng: self._syllables(rng) + self._syllables(rng), "password")

    def number(self, digits: int) -> str:
        return self._draw(lambda rng: str(rng.randrange(10 ** (digits - 1), 10 ** digits)),
                          f"number{digits}")

    def time(self) -> str:
        return self._draw(lambda rng: f"{rng.randrange(7, 22)}:{rng.randrange(60):02}", "time")

    def date(self) -> str:
        return f"{self.rng.randint(1, 28)} {self.rng.choice(MONTHS)}"
