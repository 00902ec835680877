"""Samples of what the model writes, and what can be counted about them.

    prompts = params.evaluate.prompts or beginnings(val.texts, 128, generator.continues)
    samples = generate(generator, params.evaluate, prompts, advance)
    report = describe(samples, tokenizer, index)       # by temperature, and every story

Counted in tokens of the project's own tokenizer over prompt and continuation together, so that languages without
spaces count as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipeline.errors import UserError
from pipeline.evaluate.memorisation import Index
from pipeline.generate.generation import Completion, Generator
from pipeline.generate.inspection import inspect
from pipeline.generate.sampling import Sampling
from pipeline.params import Evaluate

_PROMPTS, _PROMPT_BYTES = 3, 30  # where params name none; bytes count five English words or ten Chinese characters
_REPEATED_NGRAM = 4
_INSPECTED = 2  # stories that are shown token by token
_FINAL = tuple(".!?…‽。．｡！？؟۔।")  # what ends a sentence: Latin, Chinese, Japanese, Arabic, Urdu, Hindi
_CLOSING = "\"'”’»›)]}*_」』”’）】〉》"  # what may stand after it


@dataclass(frozen=True)
class Sample:
    """One story and how it was drawn."""

    temperature: float
    completion: Completion


def beginnings(texts: list[str], longest: int, fits: Callable[[str], bool]) -> list[str]:
    """The first words of a few of the texts, evenly spread: prompts in the language of any corpus.

    At most `longest` bytes, 30 and half of the text each; of a hundred or so those that `fits` takes are chosen from.
    Raises UserError where there is none.
    """
    found = list(dict.fromkeys(filter(None, (_first_words(text, longest) for text in texts))))
    found = [text for text in found[:: max(1, len(found) // 100)] if fits(text)]
    if not found:
        raise UserError("evaluate.prompts is empty, and no document of data/clean/val begins with words; set it")
    return found[:: -(-len(found) // _PROMPTS)]


def _first_words(text: str, longest: int) -> str:
    line = text.lstrip().split("\n", 1)[0].rstrip()
    cut = line.encode()[: min(longest, _PROMPT_BYTES, len(line.encode()) // 2)].decode(errors="ignore")
    within_word = not (cut[-1:].isspace() or line[len(cut) : len(cut) + 1].isspace())
    words = cut.rsplit(maxsplit=1)  # of scripts without spaces a single one, which stays as it is
    return words[0] if within_word and len(words) == 2 else cut.rstrip() or line[:1]


def generate(
    generator: Generator, params: Evaluate, prompts: list[str], advance: Callable[[int], None] = lambda n: None
) -> list[Sample]:
    """Continue every prompt at every temperature, `samples_per_prompt` times each (once where nothing is random).

    Each time has a seed of its own, `seed` and up; a text depends on seed, prompt and settings alone.
    """
    samples = []
    passes = [t for t in params.temperatures for _ in range(params.samples_per_prompt if t > 0 else 1)]
    for seed, temperature in enumerate(passes, params.seed):
        sampling = Sampling(
            max_new_tokens=params.max_new_tokens, temperature=temperature, top_p=params.top_p, seed=seed
        )
        samples += [Sample(temperature, completion) for completion in generator.generate(prompts, sampling)]
        advance(len(prompts))
    return samples


def describe(samples: list[Sample], tokenizer: Tokenizer, index: Index | None) -> dict[str, Any]:
    """Figures by temperature and all stories; overlaps with the training text where there is an index of it."""
    stories = [_story(sample, tokenizer, index) for sample in samples]
    temperatures = sorted({story["temperature"] for story in stories})
    return {
        "by_temperature": [_figures(t, [s for s in stories if s["temperature"] == t]) for t in temperatures],
        "stories": [{key: value for key, value in story.items() if key != "ids"} for story in stories],
    }


def inspected(samples: list[Sample], generator: Generator) -> list[dict[str, Any]]:
    """Of the first prompts, the first story at the lowest temperature that is random, token by token."""
    temperature = min(filter(None, (sample.temperature for sample in samples)), default=0.0)
    mine = {s.completion.prompt: s.completion for s in reversed(samples) if s.temperature == temperature}
    found = []
    for completion in list(reversed(mine.values()))[:_INSPECTED]:
        ids = generator.encode(completion.prompt + completion.text)[: generator.context]
        found.append({"temperature": temperature} | inspect(generator, ids, n_alternatives=3).described())
    return found


def means(described: dict[str, Any]) -> dict[str, float]:
    """Means over all temperatures but greedy's, whose few stories say little; greedy's where there are no others."""
    random = [f for f in described["by_temperature"] if f["temperature"] > 0] or described["by_temperature"]
    names = [name for name in random[0] if name not in ("temperature", "stories", "overlap_max")]
    return {name: float(np.mean([figures[name] for figures in random])) for name in names}


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


def _story(sample: Sample, tokenizer: Tokenizer, index: Index | None) -> dict[str, Any]:
    prompt, text = sample.completion.prompt, sample.completion.text
    encoding = tokenizer.encode(prompt + text, add_special_tokens=False)
    story: dict[str, Any] = {
        "temperature": sample.temperature,
        "prompt": prompt,
        "text": text,
        "tokens": sample.completion.n_tokens,  # generated; `length` is that of prompt and text together
        "length": len(encoding.ids),
        "stops": sample.completion.finish_reason == "end",
        "ends": sample.completion.finish_reason == "end" and ends_properly(prompt + text),
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
