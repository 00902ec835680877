"""Which documents are val: those of the smallest hashes, or as the source says.

moved = fill(documents, given, losses)      # documents.is_val changes where val or train would be too small
"""

import numpy as np

from pipeline import console
from pipeline.clean.duplicates import Documents
from pipeline.errors import UserError

VAL_BYTES = 16_384  # of text that val should hold, whatever val_fraction says: a block of 2,048 tokens and more
SMALL_BYTES = 4_096  # the same where that would be more than a tenth of the text


def fill(documents: Documents, given: bool, losses: str) -> int:
    """See that train and val both hold documents, and val enough to measure a loss on; returns how many moved.

    `is_val` marks the documents below val_fraction, which are those of the smallest hashes; where they are too few, val
    takes the next ones, so that the choice depends on the documents alone and equal texts stay together.
    given: the source says what is val, and nothing moves. losses: what became of the other documents, for the errors.
    """
    left = np.flatnonzero(documents.reason == 0)
    n_val = n = int(documents.is_val[left].sum())
    if len(left) == 0:
        raise UserError(f"no document is left: {losses}; see params clean.*, and reports/download.json")
    if len(left) == 1:
        todo = "add documents, or see download.split"
        raise UserError(f"one document is left, and val needs one of its own: {losses}; {todo}")
    if given and n_val in (0, len(left)):
        empty = "train" if n_val else "val"
        raise UserError(f"every {empty} document of the source was dropped: {losses}; see params clean.*")
    if not given:
        left = left[np.argsort(documents.key[left], kind="stable")]
        n = _wanted(documents.key[left], documents.size[left], n_val)
        documents.is_val[left[:n]], documents.is_val[left[n:]] = True, False
    if n == 0:
        raise UserError(f"all {len(left):,} documents left are equal, and val needs other text than train: {losses}")
    n_bytes = int(documents.size[left[documents.is_val[left]]].sum())
    if n != n_val:
        lack = "leaves train no document" if n < n_val else "gives val too little to measure a loss on"
        console.warn(
            f"clean.val_fraction {lack} ({n_val:,} of {len(left):,} documents); val takes the {n:,} of the smallest "
            f"hashes, {console.size(n_bytes)}. Add documents, or set another clean.val_fraction"
        )
    elif n_bytes < SMALL_BYTES:
        text = console.size(n_bytes)
        console.warn(f"val holds {text}; training needs at least train.block_size tokens of it. Add documents to it")
    return abs(n - n_val)


def _wanted(key: np.ndarray, size: np.ndarray, n_val: int) -> int:
    """How many documents should be val, of the hashes and bytes of all in the hashes' order; 0: they are all equal."""
    end = np.cumsum(size)
    enough = min(VAL_BYTES, max(end[-1] / 10, min(end[-1] / 3, SMALL_BYTES)))
    n = min(max(n_val, 1 + int(np.searchsorted(end, enough))), len(key) - 1)
    n = int(np.searchsorted(key, key[n - 1], side="right"))
    return n if n < len(key) else int(np.searchsorted(key, key[-1]))
