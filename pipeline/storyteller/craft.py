"""How a bundled story is put into words: the one place where chance enters, and sentences that many plots share.

A sentence is a plain string in which `[big|small|tiny]` stands for one of its alternatives. `Telling.say` picks one
of several such sentences, settles its brackets and counts what each choice cost in bits.
"""

import hashlib
import math
import random
import re
from collections.abc import Sequence
from typing import TypeVar

from pipeline.storyteller.world import (
    ANIMAL_KINDS,
    ANIMAL_NAMES,
    CHILD_NAMES,
    COLORS,
    ELDERS,
    FOODS,
    Being,
    Place,
    Pronouns,
)

T = TypeVar("T")

_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_LOG2 = (0.0, *(math.log2(n) for n in range(1, 1025)))  # looked up some sixty times a story

# Words for which the plots have many equals.
DAY = (
    "[One day|One morning|One sunny day|One afternoon|One fine day|One warm day|One Saturday|One Sunday|"
    "One bright morning|One spring day|One summer day|One quiet afternoon|One windy day|One Monday|One Friday|"
    "One lovely day]"
)
HAPPY = "[happy|glad|very happy|so happy|full of joy|very glad|as happy as could be|as happy as a lark]"
SAD = "[sad|very sad|so sad|upset|unhappy]"
CHEERED = "[smiled|laughed|clapped|cheered|danced|jumped for joy|grinned|hopped up and down|beamed]"
AFTER = "[From that day on|From then on|After that day|Ever since that day]"


class Telling:
    """One story in the making: its own source of chance, the text so far, and the bits that its choices cost."""

    def __init__(self, seed: int, index: int) -> None:
        digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
        # Of the standard generator only random() is used: its sequence is promised to stay the same.
        self._random = random.Random(int.from_bytes(digest, "big")).random
        self._paragraphs: list[list[str]] = [[]]
        self.bits = 0.0

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """Choose one of `options`; every choice of a story is made here. `weights`, if given, sum to one."""
        if weights is None:
            self.bits += _LOG2[len(options)]
            return options[int(self._random() * len(options))]
        point, chosen = self._random(), 0
        while point >= weights[chosen] and chosen + 1 < len(options):
            point -= weights[chosen]
            chosen += 1
        self.bits -= math.log2(weights[chosen])
        return options[chosen]

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.pick((True, False), (probability, 1 - probability))

    def words(self, *variants: str) -> str:
        """Choose one of `variants` and settle its brackets."""
        return _BRACKET.sub(lambda found: self.pick(found[1].split("|")), self.pick(variants))

    def say(self, *variants: str) -> None:
        """Add one of `variants` to the paragraph, its brackets settled and its first letter a capital."""
        words = self.words(*variants)
        first = 1 if words[0] == '"' else 0
        self._paragraphs[-1].append(words[:first] + words[first].upper() + words[first + 1 :])

    def maybe(self, probability: float, *variants: str) -> None:
        """Say one of `variants`, or nothing."""
        if self.chance(probability):
            self.say(*variants)

    def paragraph(self) -> None:
        """Begin a new paragraph."""
        self._paragraphs.append([])

    @property
    def text(self) -> str:
        """The story so far. Articles are fitted here, as the word after `a` is often the outcome of a choice."""
        return _ARTICLE.sub(r"\1n ", "\n\n".join(map(" ".join, self._paragraphs)))

    # The people of a story. Two of one story never share a pronoun, so that `he` or `she` is always clear.

    def child(self, other: Being | None = None) -> Being:
        """A boy or a girl; beside `other`, the one that `other` is not."""
        pronouns = self._pronouns(other)
        return Being(self.pick(CHILD_NAMES[pronouns]), "girl" if pronouns.he == "she" else "boy", pronouns)

    def animal(self, other: Being | None = None) -> Being:
        """A young animal with a name; beside `other`, one of another kind."""
        pronouns = self._pronouns(other)
        kinds = [kind for kind in ANIMAL_KINDS if other is None or kind != other.kind]
        return Being(self.pick(ANIMAL_NAMES[pronouns]), self.pick(kinds), pronouns)

    def hero(self) -> Being:
        """A child or an animal."""
        return self.child() if self.chance(0.6) else self.animal()

    def friend(self, hero: Being) -> Being:
        """Someone like the hero to play with."""
        return self.child(hero) if hero.is_child else self.animal(hero)

    def elder(self) -> Being:
        """Someone of the family to turn to."""
        return self.pick(ELDERS)

    def _pronouns(self, other: Being | None) -> Pronouns:
        return self.pick([pronouns for pronouns in CHILD_NAMES if other is None or pronouns != other.pronouns])


def introduce(t: Telling, h: Being) -> None:
    """Begin the story with its hero."""
    home = (
        "in a [small|little|cozy|white|yellow|brick|tall|red|wooden] house [near the sea|by the river|on a hill|"
        "in a quiet town|at the end of the road|next to a farm|near the woods|in a busy city|by a lake|"
        "at the foot of a mountain]"
        if h.is_child
        else "in a [small|cozy|warm|little|snug] [den|hut|hole|hollow log|home] [under an old tree|near the river|"
        "at the edge of the woods|on a green hill|by the pond|deep in the forest]"
    )
    like = "[little|small|young|kind|cheerful|clever|friendly|funny|curious|gentle|lively|happy|dreamy|busy]"
    t.say(
        f"Once upon a time, there was a {like} {h.kind} [named|called] {h}.",
        f"Once there was a {like} {h.kind} named {h} who lived {home}.",
        f"{h} was a {like} {h.kind} who lived {home}.",
        f"Once upon a time, {home}, there lived a {like} {h.kind} [named|called] {h}.",
        f"There once was a {like} {h.kind} whose name was {h}.",
    )
    t.maybe(
        0.7,
        f"{h.He} [loved|liked] to [sing|dance|run|draw|paint|climb|dig|read|tell jokes|look at the clouds|jump|splash|"
        "count the stars|make faces] and [play outside|hum little songs|ask questions|help at home|collect stones|"
        "watch birds|play hide and seek|roll down hills|chase leaves|invent games|feed the ducks|listen to stories].",
        f"{h.He} [always|often] wore a [{COLORS}] [hat|scarf|coat|ribbon|shirt|sweater] with"
        " [golden|silver|black|tiny|big|shiny] [dots|stripes|stars|buttons|flowers|hearts].",
        f"{h.His} favorite color was [{COLORS}], and {h.his} favorite [day was Sunday|place was the garden|"
        "animal was the owl|season was spring|game was tag|sound was the rain|thing was a good story].",
        f"{h.He} was [as quick as the wind|as busy as a bee|a little shy|always full of ideas|always on the move]"
        " and [never|almost never] [sat still|got up late|said no to a game|ran out of questions].",
    )


def outing(t: Telling, h: Being, other: str, place: Place) -> None:
    """Take the hero and `other` (such as `her dad`) to a place, where there is something to see."""
    t.say(
        f"{DAY}, {h} [went|walked|took a walk] {place.to} with {other}.",
        f"{DAY}, {h} and {other} [went|walked|skipped|set off] {place.to}.",
    )
    weather(t)
    if t.chance(0.75):
        look(t, "they", place)


def weather(t: Telling) -> None:
    """Perhaps say what kind of a day it is; nothing that follows depends on it."""
    t.maybe(
        0.5,
        "The sun [was warm|was bright|shone|smiled down], and a [soft|cool|fresh|light] wind [played with|moved|shook]"
        " the [leaves|flowers|grass].",
        "The sky was [blue|clear|bright], with [one|two|three|some] [white|little|round|soft] clouds [in it|like sheep|"
        "like pillows|like boats].",
        "The air smelled of [warm|fresh|sweet] [grass|hay|flowers|rain|earth] and [summer|spring|sunshine].",
    )


def look(t: Telling, who: str, place: Place) -> None:
    """Let `who` see two things that belong to the place."""
    first = t.pick(place.sights)
    second = t.pick([sight for sight in place.sights if sight != first])
    t.say(
        f"{who} [saw|looked at|found] {first} and {second}.",
        f"First {who} [saw|looked at] {first}. [Close by|Not far away|A little later], {who} saw {second}.",
        f"{place.At}, {who} [saw|found|looked at] {first}, and then {second}.",
    )


def meal(t: Telling, who: str) -> None:
    """Let `who` eat two good things."""
    first = t.pick(FOODS)
    second = t.pick([food for food in FOODS if food != first])
    t.say(
        f"Then {who} [ate|had|shared] {first} and {second}.",
        f"[For a snack|When they were hungry|To celebrate], {who} [ate|had|shared] {first} and {second}.",
    )
