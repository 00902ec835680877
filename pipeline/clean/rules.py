"""The table of cleaning rules, in the order in which they work: what is reported and drawn derives from it too.

    for number, rule in active(params.clean): ...
    judged = judge(texts, params.clean)      # the first pass over a batch: a pyarrow StructArray of JUDGED

A new rule is a function (here, or in a module of its own) and its entry in RULES, its switch in
pipeline/params/clean.py and configs/clean/default.yaml, and a test.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clean import decontamination, duplicates, rewriting
from pipeline.clean.characters import Characters, repeated_lines, script_share, slices, top_ngram, with_letter
from pipeline.documents.shards import byte_lengths
from pipeline.params import Clean


@dataclass(frozen=True)
class Rule:
    """One step of cleaning; exactly one of the last four says what it does."""

    name: str  # of the step, and of the reason to drop a document
    why: str  # what it is that is rewritten, or what a dropped document is
    on: Callable[[Clean], bool]
    rewrite: Callable[[pa.Array, Clean], pa.Array] | None = None  # texts → texts
    drop: Callable[[Characters, Clean], np.ndarray] | None = None  # judges a document alone; bool [D], true: dropped
    repeats: Callable[[duplicates.Documents, np.ndarray], np.ndarray] | None = None  # judges all; indices or a mask
    blocked: Callable[[Clean, Iterable[pa.Array]], np.ndarray] | None = None  # n-grams that train must not have


# --- documents judged alone: bool [D], true: dropped ------------------------------------------------------------------


def _too_short(batch: Characters, params: Clean) -> np.ndarray:
    return batch.length_D < max(1, params.min_chars)


def _too_long(batch: Characters, params: Clean) -> np.ndarray:
    return batch.length_D > (params.max_chars or np.inf)


def _script(batch: Characters, params: Clean) -> np.ndarray:
    return script_share(batch, params.script) < params.min_script_share


def _word_length(batch: Characters, params: Clean) -> np.ndarray:
    low, high = params.quality.mean_word_length
    mean_D = batch.token_R.total(batch.token_R.length_R) / batch.token_R.count_D
    return (mean_D < low) | (mean_D > high)


def _symbols(batch: Characters, params: Clean) -> np.ndarray:
    symbols_D = sum(pc.count_substring(batch.texts, s).to_numpy(zero_copy_only=False) for s in ("#", "…", "..."))
    return symbols_D / batch.token_R.count_D > params.quality.max_symbol_ratio


def _alphabetic_words(batch: Characters, params: Clean) -> np.ndarray:
    share_D = batch.token_R.total(with_letter(batch)) / batch.token_R.count_D
    return share_D < params.quality.min_alphabetic_words


def _repeated_lines(batch: Characters, params: Clean) -> np.ndarray:
    return repeated_lines(batch) > params.quality.max_duplicate_lines


def _top_ngram(batch: Characters, params: Clean) -> np.ndarray:
    return top_ngram(batch, 3) > params.quality.max_top_ngram


# --- the table --------------------------------------------------------------------------------------------------------

# What rewrites comes first, then what judges a document alone, then what needs all of them, then what needs val.
# fmt: off
RULES = (
    Rule("fix_encoding", "mojibake", lambda p: p.fix_encoding, rewrite=rewriting.fix_encoding),
    Rule("tidy_whitespace", "untidy white space, control characters",
         lambda p: p.tidy_whitespace != "none", rewrite=rewriting.tidy_whitespace),
    Rule("unicode_form", "characters that are not in clean.unicode_form",
         lambda p: p.unicode_form != "none", rewrite=rewriting.normalize),
    Rule("mask_personal_data", "e-mail addresses, IP addresses, phone numbers",
         lambda p: p.mask_personal_data, rewrite=rewriting.mask_personal_data),
    Rule("too_short", "shorter than clean.min_chars", lambda p: True, drop=_too_short),
    Rule("too_long", "longer than clean.max_chars", lambda p: p.max_chars is not None, drop=_too_long),
    Rule("script", "fewer of its letters than clean.min_script_share are of clean.script",
         lambda p: p.script != "any", drop=_script),
    Rule("quality_word_length", "its mean word length is outside clean.quality.mean_word_length",
         lambda p: p.quality.enabled, drop=_word_length),
    Rule("quality_symbols", "more '#' and '…' per word than clean.quality.max_symbol_ratio",
         lambda p: p.quality.enabled, drop=_symbols),
    Rule("quality_alphabetic_words", "fewer words with a letter than clean.quality.min_alphabetic_words",
         lambda p: p.quality.enabled, drop=_alphabetic_words),
    Rule("quality_duplicate_lines", "more repeated lines than clean.quality.max_duplicate_lines",
         lambda p: p.quality.enabled, drop=_repeated_lines),
    Rule("quality_top_ngram", "one sequence of 3 words fills more than clean.quality.max_top_ngram",
         lambda p: p.quality.enabled, drop=_top_ngram),
    Rule("exact_duplicates", "equal to another document", lambda p: p.exact_duplicates, repeats=duplicates.exact),
    Rule("near_duplicates", "nearly equal to another document",
         lambda p: p.near_duplicates.enabled, repeats=duplicates.near),
    Rule("benchmark_overlap", "shares a sequence of words with a file of clean.decontaminate",
         lambda p: bool(p.decontaminate), blocked=decontamination.of_benchmarks),
    Rule("val_overlap", "shares a sequence of words with a val document",
         lambda p: p.decontaminate_val, blocked=decontamination.of_val),
)
# fmt: on
REWRITES = tuple(rule for rule in RULES if rule.rewrite)
JUDGED = pa.struct(
    [
        ("text", pa.large_string()),
        ("key", pa.uint64()),  # hash of the text: its identity, and what decides its split
        ("reason", pa.uint8()),  # number of the rule that drops the document (`active`); 0: it stays
        ("changed", pa.uint8()),  # bit i: REWRITES[i] changed the text
        ("bytes", pa.list_(pa.int64(), 1 + len(REWRITES))),  # before the first rewrite and after each
    ]
)


def active(params: Clean) -> list[tuple[int, Rule]]:
    """The rules that the params switch on, in order, each with its number from 1: what a document's `reason` holds."""
    return [(number, rule) for number, rule in enumerate(RULES, 1) if rule.on(params)]


def judge(texts: pa.Array, params: Clean) -> pa.StructArray:
    """What the rules make of each text, and the number of the first one that drops it by itself.

    No document's result depends on another's, so batches can be cut and spread over machines in any way.
    """
    texts = texts.cast(pa.large_string())
    sizes = [byte_lengths(texts)]
    changed = np.zeros(len(texts), np.uint8)
    for bit, rule in enumerate(REWRITES):
        if rule.rewrite and rule.on(params):
            before, texts = texts, rule.rewrite(texts, params)
            changed |= pc.not_equal(before, texts).to_numpy(zero_copy_only=False).astype(np.uint8) << bit
        sizes.append(byte_lengths(texts))
    columns = [
        texts,
        pa.array(_keys(texts), pa.uint64()),
        pa.array(_reasons(texts, params), pa.uint8()),
        pa.array(changed),
        pa.FixedSizeListArray.from_arrays(pa.array(np.stack(sizes, axis=1).ravel()), 1 + len(REWRITES)),
    ]
    return pa.StructArray.from_arrays(columns, fields=list(JUDGED))


def _reasons(texts: pa.Array, params: Clean) -> np.ndarray:
    """Number of the first rule that drops each text; 0: none. uint8 [texts]"""
    reasons = np.zeros(len(texts), np.uint8)
    start = 0
    for part in slices(texts):
        batch, here = Characters(part), reasons[start : start + len(part)]
        for number, rule in active(params):
            if rule.drop:
                here[rule.drop(batch, params) & (here == 0)] = number
        start += len(part)
    return reasons


def _keys(texts: pa.Array) -> np.ndarray:
    """A 64-bit hash of each text: the same on every machine and for ever, since splits depend on it."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data) if data is not None else memoryview(b"")
    digests = [hashlib.blake2b(view[a:b], digest_size=8).digest() for a, b in pairwise(ends)]
    return np.frombuffer(b"".join(digests), "<u8")
