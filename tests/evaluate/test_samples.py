"""Counts over stories, by hand; stories of the real Generator."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluate import samples
from pipeline.evaluate.memorisation import Index
from pipeline.evaluate.samples import Sample
from pipeline.generate.generation import Completion, Generator
from pipeline.model.build import MoEGPT
from pipeline.params import Params
from pipeline.tokens import tokenizer as vocabulary
from pipeline.tokens.store import TokenStore


def test_distinct_and_repetition_by_hand() -> None:
    assert samples.distinct([[1, 2, 1, 2], [1, 2]], 1) == pytest.approx(2 / 6)
    assert samples.distinct([[1, 2, 1, 2], [1, 2]], 2) == pytest.approx(2 / 4)
    assert samples.distinct([[1]], 2) == 0
    assert samples.repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
    assert samples.repetition([1, 2, 3]) == 0


def test_a_copied_story_is_found_and_marked(work: Path) -> None:
    tokenizer = vocabulary.load(work / "data/tokenizer")
    store = TokenStore(work / "data/tokens/train")
    starts = store.documents()
    index = Index(store.read(0, store.n_tokens))
    story = tokenizer.decode(store.read(int(starts[3]), int(starts[4]) - 1).tolist())
    assert story.rstrip(" \"'”").endswith((".", "!", "?"))
    copied = Sample(1.0, Completion(story[:9], story[9:], 50, "end"))
    own = Sample(1.0, Completion("One day", " zq xj" * 10 + story[100:160], 40, "length"))
    found = samples.describe([copied, own], tokenizer, index)
    first, second = found["stories"]
    assert (first["overlap_share"], first["overlap_span"]) == (1.0, [0, len(story)])
    begin, end = second["overlap_span"]
    assert ("One day" + " zq xj" * 10 + story[100:160])[begin:end].strip() in story
    assert 5 <= second["overlap"] < first["overlap"]
    figures = found["by_temperature"][0]
    assert (figures["ends"], figures["copied"], figures["overlap_max"]) == (0.5, 0.5, first["overlap"])
    assert second["repetition"] > 0.5 > first["repetition"]


def test_every_prompt_at_every_temperature(model: MoEGPT, work: Path, parameters: Params) -> None:
    config = parameters.evaluate.model_copy(
        update={"prompts": ["Once", "The dog"], "temperatures": [0.0, 1.0], "samples_per_prompt": 2}
    )
    drawn = samples.generate(Generator(model, work / "data/tokenizer"), config, config.prompts)
    assert [(one.temperature, one.completion.prompt) for one in drawn] == [
        (0.0, "Once"), (0.0, "The dog"), *[(1.0, "Once"), (1.0, "The dog")] * 2
    ]  # fmt: skip
    assert drawn[2].completion.text != drawn[4].completion.text  # another seed
    hotter = config.model_copy(update={"temperatures": [1.0, 1.0]})  # the same distribution twice, yet other draws
    twice = samples.generate(Generator(model, work / "data/tokenizer"), hotter, ["Once"])
    assert len({sample.completion.text for sample in twice}) == 4
    again = samples.generate(Generator(model, work / "data/tokenizer"), config, config.prompts)
    assert drawn == again
    found = samples.describe(drawn, vocabulary.load(work / "data/tokenizer"), None)
    assert [f["stories"] for f in found["by_temperature"]] == [2, 4]
    assert "overlap" not in found["stories"][0]


def test_prompts_are_the_first_words_of_documents_in_any_language() -> None:
    english = "\n Once upon a time there was a little girl who liked to sing.\nShe had a dog."
    chinese = "从前有一只小兔子名叫雪球，它住在森林里，每天都去河边喝水。"
    assert samples.beginnings([english, chinese], 100, bool) == ["Once upon a time there was a", "从前有一只小兔子名叫"]
    assert samples.beginnings(["Emma", "x", "  "], 100, bool) == ["Em", "x"]  # half of a short text; a letter at least
    assert samples.beginnings([english], 11, bool) == ["Once upon a"]
    many = [f"Story {i} begins with a number, as others do." for i in range(90)]
    assert samples.beginnings([many[0], *many], 100, bool) == [f"Story {i} begins with a" for i in (0, 30, 60)]
    without_7 = samples.beginnings(many, 100, lambda text: "7" not in text)  # a character that has no token, say
    assert len(without_7) == 3 and "7" not in "".join(without_7)
    with pytest.raises(UserError, match=r"evaluate\.prompts is empty"):
        samples.beginnings([" \n", ""], 100, bool)


def test_overlap_of_texts_never_seen_is_short(work: Path) -> None:
    tokenizer = vocabulary.load(work / "data/tokenizer")
    store = TokenStore(work / "data/tokens/train")
    index = Index(store.read(0, store.n_tokens))
    assert samples.overlaps(["zq xj vw kp zz"] * 3, tokenizer, index, [8]) < 4
    text = tokenizer.decode(store.read(0, 30).tolist())
    assert samples.overlaps([text], tokenizer, index, [12]) == 12


def test_held_out_texts_are_cut_to_the_lengths_of_the_stories(work: Path) -> None:
    tokenizer = vocabulary.load(work / "data/tokenizer")
    store = TokenStore(work / "data/tokens/train")
    index = Index(store.read(0, store.n_tokens))
    texts = [tokenizer.decode(store.read(0, n).tolist()) for n in (20, 40, 60)]  # so an overlap is a cut's length
    assert samples.overlaps(texts, tokenizer, index, [30, 10, 50]) == np.mean([30, 10, 50])
    assert samples.overlaps(texts, tokenizer, index, [1000]) == 60  # none is that long: the longest


@pytest.mark.parametrize(
    ("text", "proper"),
    [
        ("They went home.", True),
        ('She said, "Good night!"  \n', True),
        ("“Was it you?” (No…)", True),
        ("他们回家了。", True),
        ("她说：「晚安！」", True),
        ("妈妈笑着说：“好！”", True),
        ("They went home", False),
        ('He said, "', False),
        ("and then, ", False),
        ("他们回家了，", False),
        ("", False),
        ('"', False),
    ],
)
def test_a_story_ends_properly_with_a_closed_sentence(text: str, proper: bool) -> None:
    assert samples.ends_properly(text) == proper


def test_a_story_that_stops_within_a_sentence_does_not_count_as_ended(work: Path) -> None:
    words = vocabulary.load(work / "data/tokenizer")
    drawn = [
        Sample(1.0, Completion("One day", text, 9, reason))
        for text, reason in ((" it rained.", "end"), (" it rained and", "end"), (" it rained.", "length"))
    ]
    found = samples.describe(drawn, words, None)
    assert [(s["stops"], s["ends"]) for s in found["stories"]] == [(True, True), (True, False), (False, False)]
    assert found["by_temperature"][0]["ends"] == pytest.approx(1 / 3)
