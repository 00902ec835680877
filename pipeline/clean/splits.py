"""Which documents are val: those of the smallest hashes, or as the source says.

fill(hashes, is_val, stays, given, losses)      # is_val changes where val or train would be too small
"""

import numpy as np

from pipeline import console
from pipeline.clean.duplicates import Hashes
from pipeline.errors import UserError

VAL_BYTES = 16_384  # of text that val should hold, whatever val_fraction says: a block of 2,048 tokens and more
SMALL_BYTES = 4_096  # the same where that would be more than a tenth of the text


def fill(hashes: Hashes, is_val: np.ndarray, stays: np.ndarray, given: bool, losses: str) -> int:
    """See that train and val both hold documents, and val enough to measure a loss on; returns how many moved.

    `is_val` marks the documents below val_fraction, which are those of the smallest hashes; where they are too few, val
    takes the next ones, so that the choice depends on the documents alone and equal texts stay together.
    given: the source says what is val, and nothing moves. losses: what became of the other documents, for the errors.
    """
    left = np.flatnonzero(stays)
    n_val = int(is_val[left].sum())
    if len(left) == 0:
        raise UserError(f"no document is left: {losses}; see params clean.*, and reports/download.json")
    if len(left) == 1:
        raise UserError(
            f"one document is left, and val needs one of its own: {losses}; add documents, or see download.split"
        )
    if given and n_val in (0, len(left)):
        empty = "train" if n_val else "val"
        raise UserError(f"every {empty} document of the source was dropped: {losses}; see params clean.*")
    n = n_val if given else _wanted(hashes, left := left[np.argsort(hashes.key[left], kind="stable")], n_val)
    if n == 0:
        raise UserError(f"all {len(left):,} documents left are equal, and val needs other text than train: {losses}")
    if not given:
        is_val[left[:n]], is_val[left[n:]] = True, False
    n_bytes = int(hashes.size[left[is_val[left]]].sum())
    if n != n_val:
        lack = "leaves train no document" if n < n_val else "gives val too little to measure a loss on"
        console.warn(
            f"clean.val_fraction {lack} ({n_val:,} of {len(left):,} documents); val takes the {n:,} of the smallest "
            f"hashes, {console.size(n_bytes)}. Add documents, or set another clean.val_fraction"
        )
    elif n_bytes < SMALL_BYTES:
        console.warn(
            f"val holds {console.size(n_bytes)} of text; training needs at least train.block_size tokens of it. "
            "Add documents to it"
        )
    return abs(n - n_val)


def _wanted(hashes: Hashes, by_hash: np.ndarray, n_val: int) -> int:
    """How many of the documents (indices in the order of their hashes) should be val; 0: they are all equal."""
    key, end = hashes.key[by_hash], np.cumsum(hashes.size[by_hash])
    enough = min(VAL_BYTES, max(end[-1] / 10, min(end[-1] / 3, SMALL_BYTES)))
    n = min(max(n_val, 1 + int(np.searchsorted(end, enough))), len(key) - 1)
    n = int(np.searchsorted(key, key[n - 1], side="right"))
    return n if n < len(key) else int(np.searchsorted(key, key[-1]))
