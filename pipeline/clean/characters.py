"""A batch of documents as arrays of characters, words and lines, and hashes of their word sequences.

    batch = Characters(texts)                    # texts: a pyarrow array of strings
    script_share(batch, "latin")                 # of the letters of each document
    ngrams(batch, 13)                            # hashes of 13 words in a row, and whose they are

Dimensions: C characters of the batch, R runs of characters (words, lines), D documents, G word sequences.
"""

import unicodedata
from collections.abc import Iterator
from functools import cache, cached_property, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.documents.shards import byte_lengths

_LATIN = "AZ az ªª ºº ÀÖ Øö øʯ Ḁỿ ⱠⱿ Ꜣꞇ Ꞌꟿ ꬰꭤ ＡＺ ａｚ"
_HAN = ("\u2e80\u2fdf", "々〇", "\u3021\u3029", "\u3400\u4dbf", "\u4e00\u9fff", "\uf900\ufaff", "\U00020000\U000323af")
_BASE = 0x9E3779B97F4A7C15  # of the polynomial hashes, which are taken modulo 2^64
_SLICE_BYTES = 2**20  # of text looked at together: some arrays take 8 bytes a character and should stay in the cache


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By code point: folded [uint32: lower case of a letter or digit, else 0], is a letter, is white space."""
    folded, letter, space = np.zeros(0x110000, np.uint32), np.zeros(0x110000, bool), np.zeros(0x110000, bool)
    for point in range(0x110000):
        kind = unicodedata.category(chr(point))
        if kind[0] in "LNM":
            folded[point] = ord(chr(point).lower()[0])
            letter[point] = kind[0] == "L"
        elif kind[0] == "Z" or 9 <= point <= 13:
            space[point] = True
    return folded, letter, space


@cache
def _script(name: str) -> np.ndarray:
    """By code point: is of the script `latin` or `han`."""
    table = np.zeros(0x110000, bool)
    for pair in _HAN if name == "han" else _LATIN.split():
        table[ord(pair[0]) : ord(pair[1]) + 1] = True
    return table


@lru_cache(maxsize=2)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """base^i and base^-i for i from 0, uint64 [count]."""
    both = []
    for base in (_BASE, pow(_BASE, -1, 2**64)):
        factors = np.full(count, base, np.uint64)
        factors[0] = 1
        both.append(np.multiply.accumulate(factors))
    return both[0], both[1]


def slices(texts: pa.Array) -> Iterator[pa.Array]:
    """The texts in turn, as many at a time as should be looked at together."""
    ends = np.cumsum(byte_lengths(texts))
    taken = 0
    while taken < len(texts):
        stop = int(np.searchsorted(ends, (ends[taken - 1] if taken else 0) + _SLICE_BYTES)) + 1
        yield texts.slice(taken, stop - taken)
        taken = stop


class Characters:
    """The code points of a batch of texts in a row, a line break after each text. What is not asked is not computed."""

    def __init__(self, texts: pa.Array) -> None:
        self.texts = texts

    @cached_property
    def length_D(self) -> np.ndarray:
        """Characters of each document, int64 [D]."""
        return pc.utf8_length(self.texts).to_numpy(zero_copy_only=False).astype(np.int64)

    @cached_property
    def start_D(self) -> np.ndarray:
        """Where each document starts, int64 [D]."""
        return np.cumsum(self.length_D + 1) - self.length_D - 1

    @cached_property
    def point_C(self) -> np.ndarray:
        return np.frombuffer("\n".join([*self.texts.to_pylist(), ""]).encode("utf-32-le"), np.uint32)

    @cached_property
    def token_R(self) -> "Runs":
        """What stands between white space."""
        return self.runs(~_tables()[2][self.point_C])

    def count(self, mask_C: np.ndarray) -> np.ndarray:
        """How many characters of the mask each document has, int64 [D]."""
        return np.add.reduceat(mask_C, self.start_D, dtype=np.int64) if len(self.start_D) else self.start_D

    def runs(self, inside_C: np.ndarray, alone_C: np.ndarray | None = None) -> "Runs":
        """The runs of characters of `inside_C`; each one of `alone_C` is a run by itself."""
        change_C = np.diff(inside_C.view(np.int8), prepend=np.int8(0))
        first_C = change_C == 1
        if alone_C is not None:
            first_C |= alone_C  # begins at a character that stands alone, and anew after it
            first_C[1:] |= alone_C[:-1] & inside_C[1:]
        start_R = np.flatnonzero(first_C)
        stop_R = np.flatnonzero(change_C == -1)  # the last character is a line break, so every run has a stop
        stop_R = stop_R[np.searchsorted(stop_R, start_R, side="right")] if len(start_R) else start_R
        stop_R[:-1] = np.minimum(stop_R[:-1], start_R[1:])
        document_R = np.searchsorted(self.start_D, start_R, side="right") - 1
        return Runs(start_R, stop_R, document_R, len(self.start_D))


class Runs:
    """Words or lines: where they start and stop in the batch, and whose they are."""

    def __init__(self, start_R: np.ndarray, stop_R: np.ndarray, document_R: np.ndarray, documents: int) -> None:
        self.start_R, self.stop_R, self.document_R, self._documents = start_R, stop_R, document_R, documents
        self.length_R = stop_R - start_R

    @cached_property
    def count_D(self) -> np.ndarray:
        """How many each document has, but at least 1, so that shares can be taken of it."""
        return np.maximum(np.bincount(self.document_R, minlength=self._documents), 1)

    def total(self, weight_R: np.ndarray) -> np.ndarray:
        """The sum of the weights of each document's runs, float64 [D]."""
        return np.bincount(self.document_R, weights=weight_R, minlength=self._documents)

    def hashes(self, value_C: np.ndarray) -> np.ndarray:
        """A hash of each run's characters, uint64 [R]: a polynomial of their values, as differences of sums."""
        powers, inverses = _powers(1 << len(value_C).bit_length())
        sums = np.zeros(len(value_C) + 1, np.uint64)
        np.cumsum((value_C + np.uint64(1)) * powers[: len(value_C)], out=sums[1:])
        return _mixed((sums[self.stop_R] - sums[self.start_R]) * inverses[self.start_R])


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Spread a hash over all its bits (the finaliser of splitmix64, Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def words(batch: Characters) -> tuple[Runs, np.ndarray]:
    """Runs of letters and digits, a Han character being a word, and their hashes without regard to case [R]."""
    folded_C = _tables()[0][batch.point_C]
    han_C = _script("han")[batch.point_C]
    runs = batch.runs(folded_C > 0, han_C)
    return runs, runs.hashes(folded_C)


def ngrams(batch: Characters, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every n words in a row of a document: hash [G], document [G] and number of characters [G] (words only)."""
    runs, hash_R = words(batch)
    total = len(hash_R) - n + 1
    if total < 1:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    hash_G, chars_G = np.zeros(total, np.uint64), np.zeros(total, np.int64)
    powers, _ = _powers(1 << n.bit_length())
    for i in range(n):
        hash_G += hash_R[i : i + total] * powers[i]
        chars_G += runs.length_R[i : i + total]
    within = runs.document_R[:total] == runs.document_R[n - 1 :]
    return _mixed(hash_G[within]), runs.document_R[:total][within], chars_G[within]


def whole_texts(batch: Characters, below: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every document of fewer than `below` words: a hash of all its words and the document, [S] each."""
    runs, hash_R = words(batch)
    count_D = np.bincount(runs.document_R, minlength=len(batch.start_D))
    first_R = np.cumsum(count_D)[runs.document_R] - count_D[runs.document_R]
    powers, _ = _powers(1 << below.bit_length())
    short_R = count_D[runs.document_R] < below
    place_R = np.arange(len(hash_R)) - first_R
    terms = np.zeros(len(batch.start_D), np.uint64)
    np.add.at(terms, runs.document_R[short_R], hash_R[short_R] * powers[place_R[short_R]])
    document_S = np.flatnonzero((count_D > 0) & (count_D < below))
    return _mixed(terms[document_S]), document_S


def script_share(batch: Characters, script: str) -> np.ndarray:
    """Share of a document's letters that are of the script `latin` or `han`; 0 without letters. float64 [D]"""
    letters_D = batch.count(_tables()[1][batch.point_C])
    return batch.count(_script(script)[batch.point_C]) / np.maximum(letters_D, 1)


def with_letter(batch: Characters) -> np.ndarray:
    """Which of the batch's tokens have a letter, bool [R]."""
    letters_C = np.concatenate([[0], np.cumsum(_tables()[1][batch.point_C])])
    return letters_C[batch.token_R.stop_R] > letters_C[batch.token_R.start_R]


def repeated_lines(batch: Characters) -> np.ndarray:
    """Share of a document's lines that repeat an earlier one, float64 [D]."""
    lines = batch.runs(batch.point_C != ord("\n"))
    _, first = np.unique(_of_document(lines.hashes(batch.point_C), lines.document_R), return_index=True)
    distinct_D = np.bincount(lines.document_R[first], minlength=len(batch.start_D))
    return 1 - distinct_D / lines.count_D


def top_ngram(batch: Characters, n: int) -> np.ndarray:
    """Share of a document's letters and digits within its most common repeated n words, float64 [D]."""
    hash_G, document_G, chars_G = ngrams(batch, n)
    _, first, count = np.unique(_of_document(hash_G, document_G), return_index=True, return_counts=True)
    covered = np.where(count > 1, count * chars_G[first], 0)
    top_D = np.zeros(len(batch.start_D), np.int64)
    np.maximum.at(top_D, document_G[first], covered)
    return top_D / np.maximum(batch.count(_tables()[0][batch.point_C] > 0), 1)


def _of_document(hashes: np.ndarray, documents: np.ndarray) -> np.ndarray:
    return hashes ^ _mixed(documents.astype(np.uint64) + np.uint64(1))
