"""Stories the model tells, and what can be counted about them.

    told = tell(generator, params.evaluate, advance)
    report = describe(told, tokenizer, index)       # by temperature, and every story

Counted in tokens of the project's own tokenizer over prompt and continuation together, so that languages without
spaces count as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipeline.evaluate.memorisation import Index
from pipeline.generate.generation import Completion, Generator
from pipeline.generate.sampling import Sampling
from pipeline.params import Evaluate

_REPEATED_NGRAM = 4
_FINAL = tuple(".!?…‽。．｡！？؟۔।")  # what ends a sentence: Latin, Chinese, Japanese, Arabic, Urdu, Hindi
_CLOSING = "\"'”’»›)]}*_」』”’）】〉》"  # what may stand after it


@dataclass(frozen=True)
class Told:
    """One story and how it was sampled."""

    temperature: float
    completion: Completion


def tell(generator: Generator, params: Evaluate, advance: Callable[[int], None] = lambda n: None) -> list[Told]:
    """Continue every prompt at every temperature, `samples_per_prompt` times each (once where nothing is random).

    The j-th time has the seed `seed` + j; the Generator's text depends on seed, prompt and settings alone.
    """
    told = []
    for temperature in params.temperatures:
        for j in range(params.samples_per_prompt if temperature > 0 else 1):
            sampling = Sampling(
                max_new_tokens=params.max_new_tokens, temperature=temperature, top_p=params.top_p, seed=params.seed + j
            )
            told += [Told(temperature, completion) for completion in generator.generate(params.prompts, sampling)]
            advance(len(params.prompts))
    return told


def describe(told: list[Told], tokenizer: Tokenizer, index: Index | None) -> dict[str, Any]:
    """Figures by temperature and all stories; overlaps with the training text where there is an index of it."""
    stories = [_story(one, tokenizer, index) for one in told]
    temperatures = sorted({one.temperature for one in told})
    return {
        "by_temperature": [
            _figures(t, [story for story in stories if story["temperature"] == t]) for t in temperatures
        ],
        "stories": [{key: value for key, value in story.items() if key != "ids"} for story in stories],
    }


def overlaps(texts: list[str], tokenizer: Tokenizer, index: Index, lengths: list[int]) -> float:
    """Mean longest overlap, in tokens, of the beginnings of texts that the model was not trained on.

    What the same measure gives for people's stories (or the storyteller's): a model's stories that overlap no more
    than these are not copied. A longer text has more chances of a long overlap, so the texts are cut to `lengths`,
    those of the stories, in turn; where no text is that long, the longest is taken.
    """
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    found = []
    for i in range(max(len(texts), len(lengths))):
        length = lengths[i % len(lengths)]
        long_enough = [ids for ids in encoded if len(ids) >= length] or [max(encoded, key=len)]
        cut = long_enough[i % len(long_enough)][:length]
        found.append(index.longest(np.array(cut, np.int64)).length)
    return float(np.mean(found))


def ends_properly(text: str) -> bool:
    """Whether a text's last sentence is closed: by a final mark, and quotes or brackets after it if need be."""
    return text.rstrip().rstrip(_CLOSING).rstrip().endswith(_FINAL)


def distinct(ids: list[list[int]], n: int) -> float:
    """Different n-grams over all n-grams of some texts (Li et al. 2016, arXiv 1510.03055); 0 where there is none."""
    grams = [gram for text in ids for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(ids: list[int], n: int = _REPEATED_NGRAM) -> float:
    """Share of a text's n-grams that came before in it (seq-rep-n of Welleck et al. 2020, arXiv 1908.04319)."""
    grams = _ngrams(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _ngrams(ids: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def _story(told: Told, tokenizer: Tokenizer, index: Index | None) -> dict[str, Any]:
    prompt, text = told.completion.prompt, told.completion.text
    encoding = tokenizer.encode(prompt + text, add_special_tokens=False)
    story: dict[str, Any] = {
        "temperature": told.temperature,
        "prompt": prompt,
        "text": text,
        "tokens": told.completion.n_tokens,  # generated; `length` is that of prompt and text together
        "length": len(encoding.ids),
        "stops": told.completion.finish_reason == "end",
        "ends": told.completion.finish_reason == "end" and ends_properly(prompt + text),
        "repetition": repetition(encoding.ids),
        "ids": encoding.ids,
    }
    if index is not None:
        overlap = index.longest(np.array(encoding.ids, np.int64))
        story["overlap"] = overlap.length
        story["overlap_share"] = overlap.length / max(1, len(encoding.ids))
        # by characters, so that the report can mark the place; offsets are those of prompt + text
        spans = encoding.offsets[overlap.at : overlap.at + overlap.length]
        story["overlap_span"] = [spans[0][0], spans[-1][1]] if spans else [0, 0]
    return story


def _figures(temperature: float, stories: list[dict[str, Any]]) -> dict[str, Any]:
    ids = [story["ids"] for story in stories]
    figures = {
        "temperature": temperature,
        "stories": len(stories),
        "ends": float(np.mean([story["ends"] for story in stories])),
        "tokens": float(np.mean([story["tokens"] for story in stories])),
        "distinct_1": distinct(ids, 1),
        "distinct_2": distinct(ids, 2),
        "distinct_3": distinct(ids, 3),
        "repetition": float(np.mean([story["repetition"] for story in stories])),
    }
    if "overlap" in stories[0]:
        figures["overlap_mean"] = float(np.mean([story["overlap"] for story in stories]))
        figures["overlap_max"] = max(story["overlap"] for story in stories)
        figures["copied"] = float(np.mean([story["overlap_share"] == 1 for story in stories]))
    return figures
