"""Instructions and short dialogues from the storyteller's world, with what an answer can be checked for.

for made in instructions(9000, seed=0): made.messages, made.constraints

An instruction asks for a story by what happens in it and some of what it has: who it is about, what kind of animal, the
thing, the place, who helps, how it ends, how long it is. met(constraints, text) says which of that a text has.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.storyteller.craft import Telling
from pipeline.storyteller.stories import tell
from pipeline.storyteller.world import ANIMAL_KINDS, ANIMAL_NAMES, CHILD_NAMES, ELDERS, PLACES, TOYS

_NAMES = {name: pronouns for names in (CHILD_NAMES, ANIMAL_NAMES) for pronouns in names for name in names[pronouns]}
_PLACES = {place.noun: place for place in PLACES}
_MOODS = {"happy": ("happy", "glad", "joy"), "proud": ("proud",)}
_ENDINGS = {
    "hug": ("hug", "hugged"),
    "smile": ("smiled", "smile"),
    "laugh": ("laughed", "laugh"),
    "lesson": ("learned",),
    "thanks": ("thank", "thanks", "thanked"),
}
_ENDS_WITH = {
    "hug": "with a hug",
    "smile": "with a smile",
    "laugh": "with a laugh",
    "lesson": "with something learned",
    "thanks": "with a thank you",
}
_HAPPENS = {  # after "a fox named Rusty"; THING with its article
    "lost_toy": "who [lost THING and finds it again|finds THING that was lost]",
    "fear": "who is [afraid because of|scared because of] THING",
    "rescue": "who [helps|saves] THING",
    "race": "who [runs a race|races] to win THING",
    "finder": "who [finds THING and gives it back|gives back THING that was found]",
    "sharing": "who [learns to share|does not want to share] THING",
    "building": "who [builds|makes] THING with a friend",
    "new_friend": "who [makes|finds] a new friend with THING",
    "teamwork": "who can not move THING alone",
    "sick_friend": "who [brings|takes] THING to a sick friend",
    "practice": "who [practices|tries] every day with THING",
    "mistake": "who [breaks THING and tells the truth|mends THING after an accident]",
    "rainy_day": "who can not have THING because it rains",
    "plant": "who plants a seed and gets THING",
    "party": "who plans THING in secret",
    "patience": "who can not wait for THING",
    "tidying": "who can not find THING in a messy room",
    "new_food": "who does not want to eat THING",
}
_WITHOUT_ARTICLE = (
    "apples",
    "bread",
    "flowers",
    "ice pops",
    "jelly",
    "shoes",
    "skates",
    "spinach",
    "stilts",
    "green beans",
)
_ASKED = {
    "place": 0.3,
    "helper": 0.3,
    "mood": 0.15,
    "ending": 0.15,
    "length": 0.15,
}  # how often, where the story has it
_SHORT, _LONG = 150, 175  # words: a fifth of the stories is shorter, a third longer
_FAR = 10**9  # from here on, stories that no corpus of the bundled source holds
_SHARES = (0.72, 0.08, 0.2)  # of instructions, dialogues and plain stories, which keep what was learned from such
_KINDS = "|".join([*ANIMAL_KINDS, "boy", "girl"])


@dataclass(frozen=True)
class Made:
    """What was made up: turns (role and content) and constraints on the last answer, or a plain text without either."""

    messages: list[dict[str, str]]
    constraints: dict[str, Any]
    text: str = ""


def instructions(count: int, seed: int) -> Iterator[Made]:
    """Yield `count` instructions, dialogues and plain stories; each depends on the seed and its place alone."""
    for index in range(count):
        choice = Telling(seed, -1 - index)  # chance of its own: its stories have places from 0
        kind = choice.pick(("instruction", "dialogue", "text"), _SHARES)
        if kind == "text":
            yield Made([], {}, tell(seed, _FAR + index).text)
        else:
            yield _dialogue(choice) if kind == "dialogue" else _instruction(choice, seed, index)


# --- what a story has -------------------------------------------------------------------------------------------------


def met(constraints: dict[str, Any], text: str) -> dict[str, bool]:
    """For each constraint whether the text meets it, without its title; the hero is the first of the known names."""
    title, _, story = text.partition("\n\n")
    text = story if story and "." not in title else text
    first, last = (_words(part) for part in (text.split("\n\n")[0], text.rstrip().split("\n\n")[-1]))
    words, length = _words(text), len(text.split())
    found = {
        "hero": lambda name: _hero(text) == name,
        "kind": lambda kind: kind in first,
        "thing": lambda thing: thing.lower() in " ".join(re.findall(r"[a-z]+", text.lower())),
        "place": lambda place: place in words,
        "helper": lambda helper: helper in words,
        "mood": lambda mood: any(word in last for word in _MOODS[mood]),
        "ending": lambda ending: any(word in last for word in _ENDINGS[ending]),
        "length": lambda wish: length < _SHORT if wish == "short" else length > _LONG,
        "mentions": lambda options: any(option in " ".join(re.findall(r"[a-z]+", text.lower())) for option in options),
    }
    return {name: bool(found[name](value)) for name, value in constraints.items()}


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def _hero(text: str) -> str | None:
    return next((word for word in re.findall(r"[A-Z][a-z]+", text) if word in _NAMES), None)


def _facts(text: str, about: str) -> dict[str, Any]:
    """Every constraint that the story meets, with its value."""
    first, last = text.split("\n\n")[0], text.split("\n\n")[-1]
    facts: dict[str, Any] = {"hero": _hero(text), "thing": about}
    kind = re.search(rf"\b({_KINDS})\b", first)
    options = {
        "kind": kind[1] if kind else None,
        "place": next((noun for noun in _PLACES if re.search(rf"\b(?:in|at|on|to) the {noun}\b", text)), None),
        "helper": next((elder.name for elder in ELDERS if elder.name in _words(text)), None),
        "mood": next((mood for mood, words in _MOODS.items() if _words(last) & {*words}), None),
        "ending": next((end for end, words in _ENDINGS.items() if _words(last) & {*words}), None),
    }
    length = len(text.split())
    if length < _SHORT or length > _LONG:
        options["length"] = "short" if length < _SHORT else "long"
    return facts | {name: value for name, value in options.items() if value}


# --- instructions -----------------------------------------------------------------------------------------------------


def _instruction(choice: Telling, seed: int, index: int) -> Made:
    story = tell(seed, _FAR + index)
    facts = _facts(story.text, story.about)
    asked = {name: value for name, value in facts.items() if name in ("hero", "thing", "kind")}
    further = [name for name in ("place", "helper", "mood", "ending", "length") if name in facts]
    for name in further:
        if choice.chance(_ASKED[name]):
            asked[name] = facts[name]
    content = _asked_for(choice, asked, story.plot)
    return Made(
        [{"role": "user", "content": content}, {"role": "assistant", "content": f"{_title(asked)}\n\n{story.text}"}],
        asked,
    )


def _title(asked: dict[str, Any]) -> str:
    """The answer's first line says again what was asked for: so a small model learns sooner to do it."""
    helper = f", {_NAMES[asked['hero']].his} {asked['helper']}" if "helper" in asked else ""
    place = f" {_PLACES[asked['place']].at}" if "place" in asked else ""
    return f"{asked['hero']}{helper} and the {asked['thing']}{place}"


def _asked_for(choice: Telling, asked: dict[str, Any], plot: str) -> str:
    name, kind = asked["hero"], asked.get("kind")
    who = f"a {kind} [called|named] {name}" if kind else name
    thing = asked["thing"]
    thing = thing if thing in _WITHOUT_ARTICLE else f"a {thing}"
    happens = choice.words(_HAPPENS[plot]).replace("THING", thing)
    place = f" {_PLACES[asked['place']].at}" if "place" in asked else ""
    helper = asked.get("helper")
    text = [
        choice.words(
            f"[Tell|Tell me|Write|Write me] a [story|little story] about {who} {happens}{place}.",
            f"[Please tell me|I would like|Make up] a story [with|about] {who} {happens}{place}.",
            f"[A story|A bedtime story], please: {who} {happens}{place}.",
            f"Can you tell [me |us |]a story about {who} {happens}{place}?",
        )
    ]
    if helper:
        his = _NAMES[name].his
        text.append(choice.words(f"[{his.capitalize()} {helper} is in it|Put {his} {helper} in it]."))
    if "mood" in asked:
        text.append(
            choice.words(
                f"At the end, [someone is|they are] {asked['mood']}.", f"[Make|Let] the end be {asked['mood']}."
            )
        )
    if "ending" in asked:
        text.append(choice.words(f"[End|Let it end] {_ENDS_WITH[asked['ending']]}."))
    if "length" in asked:
        text.append(choice.words(f"[Keep|Make] it {asked['length']}."))
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", " ".join(text))


# --- dialogues --------------------------------------------------------------------------------------------------------


def _dialogue(choice: Telling) -> Made:
    """A greeting, and one or two questions about the world."""
    turns: list[tuple[str, str]] = []
    if choice.chance(0.5):
        name = choice.pick([*_NAMES])
        hello = choice.words("[Hello|Hi|Good morning]!", f"[Hello|Hi]! My name is {name}.")
        answer = f"Hello, {name}! " if name in hello else "Hello! "
        turns.append(
            (hello, answer + choice.words("[What would you like to know|Shall I tell you a story|How are you]?"))
        )
    mentions: list[str] = []
    for _ in range(2 if choice.chance(0.5) else 1):
        question, reply, mentions = choice.pick((_about_a_toy, _about_a_place, _about_a_spot, _about_a_sight))(choice)
        turns.append((question, reply))
    messages = [
        {"role": role, "content": content}
        for pair in turns
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    return Made(messages, {"mentions": mentions})


def _about_a_toy(choice: Telling) -> tuple[str, str, list[str]]:
    toy = choice.pick(TOYS)
    question = choice.words(f"What can [I|one|a child] do with a {toy.noun}?", f"How do you play with a {toy.noun}?")
    return question, choice.words(f"You can {toy.play}[.|. That is fun!]"), [toy.play]


def _about_a_place(choice: Telling) -> tuple[str, str, list[str]]:
    place = choice.pick(PLACES)
    question = choice.words(f"[Who lives|Which animals live] {place.at}?", f"Who could help me {place.at}?")
    names = [f"{'an' if animal[0] in 'aeiou' else 'a'} {animal}" for animal in place.animals]
    reply = f"{place.At} you can meet {names[0]}, {names[1]} and {names[2]}."
    return question, reply, list(place.animals)


def _about_a_spot(choice: Telling) -> tuple[str, str, list[str]]:
    place, toy = choice.pick(PLACES), choice.pick(TOYS)
    spot = choice.pick(place.spots)
    where = choice.words(spot.where)
    question = choice.words(f"My {toy.noun} is {where} and {spot.trouble}. [What shall I do|What can I do|Help me]!")
    fix = re.sub(r"\[([^|\]]*)[^\]]*\]", r"\1", spot.fix)  # the first of its alternatives
    return question.replace("do!", "do?"), f"Ask somebody to help you. My friends {fix}.", [re.sub("[^a-z ]", "", fix)]


def _about_a_sight(choice: Telling) -> tuple[str, str, list[str]]:
    place = choice.pick(PLACES)
    sights = [choice.words(sight) for sight in place.sights[:3]]
    question = choice.words(f"What can [I|one|you] see {place.at}?", f"What is there {place.at}?")
    return question, f"{place.At} you can see {sights[0]}, {sights[1]} and {sights[2]}.", [place.noun]
