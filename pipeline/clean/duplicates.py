"""Documents that are the same, by the hash of their text, or nearly so, by MinHash signatures (Broder 1997).

    pairs = NearDuplicates(params, folder)
    pairs.add(signatures)              # uint32 [documents * bands * rows], as often as there are batches
    doubles = pairs.find(order)        # bool [documents]

A signature has `bands` x `rows` hashes; two documents of similarity s share all rows of some band with probability
1 - (1 - s^rows)^bands (16 x 8: 0.95 at 0.8, 0.25 at 0.6), and are then compared by their whole signatures.
Signatures wait on disk; memory holds one 8-byte hash a document, one band at a time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import IO

import daft
import numpy as np
from daft import functions

from pipeline import console
from pipeline.params import NearDuplicates as Params

_CHUNK = 2**13  # pairs compared at a time
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def signature(text: daft.Expression, params: Params) -> daft.Expression:
    """The MinHash signature of a text without regard to case and punctuation; each Han character is a word.

    A text that has no word is taken as it stands, or all of them would be alike.
    """
    plain = functions.normalize(text, remove_punct=True, lowercase=True, white_space=True)
    plain = functions.regexp_replace(plain, r"(\p{Han})", " $1 ")
    plain = functions.normalize(plain, white_space=True)
    plain = functions.when(plain == "", text).otherwise(plain)
    return functions.minhash(
        plain, num_hashes=params.bands * params.rows, ngram_size=params.shingle_words, hash_function="xxhash3_64"
    )


@dataclass
class Documents:
    """What is known of the documents that the first pass keeps, in their order."""

    key: np.ndarray  # hash of the text, uint64
    size: np.ndarray  # of the text, bytes, int64
    is_val: np.ndarray  # bool
    reason: np.ndarray  # number of the rule that drops it after all, uint8; 0: it stays
    near: "NearDuplicates | None"  # their signatures, where these are wanted


def exact(documents: Documents, order: np.ndarray) -> np.ndarray:
    """Which documents have the text of one that comes earlier in `order` (indices, best first), as indices."""
    _, first = np.unique(documents.key[order], return_index=True)
    return np.delete(order, first)


def near(documents: Documents, order: np.ndarray) -> np.ndarray:
    """Which documents are near duplicates of one that comes earlier in `order` (indices, best first); bool."""
    assert documents.near is not None
    return documents.near.find(order)


class NearDuplicates:
    """Collects signatures in files of `folder` and finds the documents that a better one makes superfluous."""

    def __init__(self, params: Params, folder: Path) -> None:
        self._params, self._count = params, 0
        self._signatures = folder / "signatures"
        self._bands = [folder / f"band-{band}" for band in range(params.bands)]
        self._files: list[IO[bytes]] = [path.open("wb") for path in (self._signatures, *self._bands)]

    def add(self, signatures: np.ndarray) -> None:
        """Append the signatures of further documents, uint32 [documents * bands * rows]."""
        rows = np.ascontiguousarray(signatures, np.uint32).reshape(-1, self._params.bands, self._params.rows)
        self._files[0].write(rows.tobytes())
        for band, file in enumerate(self._files[1:]):
            hashes = np.zeros(len(rows), np.uint64)
            for row in range(self._params.rows):
                hashes = (hashes ^ rows[:, band, row]) * _MULTIPLIER
                hashes ^= hashes >> np.uint64(29)
            file.write(hashes.tobytes())
        self._count += len(rows)

    def find(self, order: np.ndarray) -> np.ndarray:
        """Which documents are near duplicates of one that comes earlier in `order` (indices, best first); bool [n].

        Documents that are not in `order` are left out. Within a band's bucket each is compared with the best and
        with its predecessor.
        """
        for file in self._files:
            file.close()
        doubles = np.zeros(self._count, bool)
        with console.progress("clean: near duplicates", len(self._bands), "bands") as advance:
            for path in self._bands:
                self._find_in(np.fromfile(path, np.uint64)[order], order, doubles)
                advance(1)
        return doubles

    def _find_in(self, hashes: np.ndarray, order: np.ndarray, doubles: np.ndarray) -> None:
        """Compare the documents that share a band's hash."""
        by_hash = np.argsort(hashes, kind="stable")  # stable: within a bucket the best comes first
        same = np.flatnonzero(hashes[by_hash[1:]] == hashes[by_hash[:-1]]) + 1
        if not len(same):
            return
        fresh = np.ones(len(order), bool)
        fresh[same] = False
        head = np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))[same]
        members = order[by_hash]
        for other in (head, same - 1):
            self._compare(members[other], members[same], doubles)

    def _compare(self, better: np.ndarray, worse: np.ndarray, doubles: np.ndarray) -> None:
        """Mark those of `worse` whose signature agrees with that of `better` in a share of `threshold` or more."""
        open_pairs = ~doubles[worse]
        better, worse = better[open_pairs], worse[open_pairs]
        width = self._params.bands * self._params.rows
        for start in range(0, len(worse), _CHUNK):
            pages = np.memmap(self._signatures, np.uint32, "r", shape=(self._count, width))  # anew: touched pages count
            some = slice(start, start + _CHUNK)
            alike = (pages[better[some]] == pages[worse[some]]).mean(axis=1) >= self._params.threshold
            doubles[worse[some][alike]] = True
            del pages
