"""The bundled stories: the same everywhere, distinct, well formed, and honest about their bits."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from pipeline.storyteller import stories as storyteller
from pipeline.storyteller.craft import Telling, meal, weather
from pipeline.storyteller.stories import PLOTS, Story, stories, tell

T = TypeVar("T")

# Changes whenever a sentence does; then every corpus, tokenizer and model made from the stories changes too.
FIRST_THOUSAND = "cc33e076aca1634484b0efe8b7d8cae6885c33ea4484d00875a8b0df76cfdea4"


@pytest.fixture(scope="module")
def collection() -> list[Story]:
    return list(stories(22_000, seed=0))


def test_the_same_stories_everywhere(collection: list[Story]) -> None:
    digest = hashlib.sha256("\0".join(story.text for story in collection[:1000]).encode()).hexdigest()
    assert digest == FIRST_THOUSAND


def test_a_story_depends_on_seed_and_index_alone(collection: list[Story]) -> None:
    assert [tell(0, index) for index in (7, 3, 3, 0)] == [collection[index] for index in (7, 3, 3, 0)]
    assert tell(1, 3) != tell(0, 3)
    assert tell(1, 23) != tell(12, 3)


def test_the_default_collection_is_large_and_distinct(collection: list[Story]) -> None:
    assert len({story.text for story in collection}) == 22_000
    assert sum(len(story.text.encode()) for story in collection) >= 8_000_000


def test_repeats_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storyteller, "tell", lambda seed, index: Story(f"Story {index // 3}.", 1.0))
    assert [story.text for story in stories(3, seed=0)] == ["Story 0.", "Story 1.", "Story 2."]


@pytest.mark.parametrize(
    "fault",
    [
        r"[\[\]{}|]",  # a slot that was not filled
        r"  | \n|\n |\n{3}",
        r"\b[Aa] [aeiou]",
        r"\b[Aa]n (?!hour)[^aeiou]",
        r"[.!?,][.!?,]",
        r" [.,!?]",
        r"[.!?] [a-z]",  # a sentence that begins small
        r'(^|\n|[.!?] )"?[a-z]',
        r"\b(?!(?:choo|boom)\b)(\w+) \1\b",  # a word said twice
        r"[^\x20-\x7e\n]",
        r"\bNone\b|\bBeing\b|object at",
    ],
)
def test_no_faults(collection: list[Story], fault: str) -> None:
    text = "\n\n".join(story.text for story in collection[:3000])
    assert not [text[max(0, found.start() - 40) : found.end() + 40] for found in re.finditer(fault, text)][:5]


def test_form(collection: list[Story]) -> None:
    for text in (story.text for story in collection[:3000]):
        assert text == text.strip()
        assert 60 <= len(text.split()) <= 250
        for paragraph in text.split("\n\n"):
            assert paragraph.count('"') % 2 == 0, paragraph
            assert re.search(r'[.!?]"?$', paragraph), paragraph


def test_the_vocabulary_is_small(collection: list[Story]) -> None:
    words = Counter(word for story in collection[:10_000] for word in re.findall(r"[a-z]+", story.text.lower()))
    assert 800 <= len(words) <= 1600


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_the_end_comes_back_to_the_beginning(plot: Callable[[Telling], str]) -> None:
    for index in range(60):
        telling = Telling(1, index)
        want = plot(telling)
        first, *_, last = telling.text.split("\n\n")
        assert want in first and want in last, telling.text


def test_he_and_she_are_never_both_the_hero_and_the_friend() -> None:
    for index in range(300):
        telling = Telling(2, index)
        hero = telling.hero()
        friend = telling.friend(hero)
        assert friend.he != hero.he and friend.name != hero.name
        assert friend.is_child == hero.is_child and friend.kind != hero.kind


def test_every_plot_is_told() -> None:
    told = Counter(Telling(0, index).pick(PLOTS) for index in range(2000))
    assert set(told) == set(PLOTS)
    assert min(told.values()) > 0.5 * 2000 / len(PLOTS)


class _Scripted(Telling):
    """Takes the choices it is told to, then first options, and notes how many options each choice had."""

    def __init__(self, script: list[int]) -> None:
        super().__init__(0, 0)
        self.script = script
        self.taken: list[int] = []
        self.widths: list[int] = []

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        choice = self.script[len(self.taken)] if len(self.taken) < len(self.script) else 0
        shares = weights or [1 / len(options)] * len(options)
        self._random = lambda: sum(shares[:choice]) + shares[choice] / 2
        self.taken.append(choice)
        self.widths.append(len(options))
        picked = super().pick(options, weights)
        assert picked is options[choice]
        return picked


def _every(tell_it: Callable[[Telling], None]) -> list[Story]:
    """All that `tell_it` can tell, by walking through the tree of its choices."""
    found: list[Story] = []
    script: list[int] = []
    while True:
        telling = _Scripted(script)
        tell_it(telling)
        found.append(Story(telling.text, telling.bits))
        script = telling.taken
        while script and script[-1] + 1 == telling.widths[len(script) - 1]:
            script.pop()
        if not script:
            return found
        script[-1] += 1


@pytest.mark.parametrize("tell_it", [weather, lambda telling: meal(telling, "they")])
def test_the_bits_of_all_ways_to_tell_sum_to_certainty(tell_it: Callable[[Telling], None]) -> None:
    everything = _every(tell_it)
    assert len(everything) > 100
    assert math.isclose(sum(2**-story.bits for story in everything), 1, rel_tol=1e-9)


def test_choices_happen_as_often_as_their_bits_say() -> None:
    tellings = [Telling(3, index) for index in range(20_000)]
    told = Counter((telling.words("[a|b|c] x", "y"), telling.chance(0.1), telling.bits) for telling in tellings)
    assert len(told) == 8
    for (_, _, bits), count in told.items():
        expected = 20_000 * 2**-bits
        assert abs(count - expected) < 5 * math.sqrt(expected)


def test_a_certain_choice_costs_nothing() -> None:
    telling = Telling(0, 0)
    telling.say("Only this.")
    assert (telling.text, telling.bits) == ("Only this.", 0.0)
