"""Training documents that share a sequence of words with val or a benchmark (the n-gram rule of GPT-3, appendix C).

A text shorter than a sequence is blocked as a whole: it drops a training document that says the same and no more.

blocked = of_val(params, val_texts)
drop = overlaps(texts, params.decontaminate_ngram, blocked)
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.clean.characters import Characters, ngrams, slices, whole_texts
from pipeline.documents.reading import ALLOWED, How, Reader, kind_of
from pipeline.errors import UserError
from pipeline.params import Clean


def check(params: Clean) -> None:
    """Raise UserError for a benchmark file that cannot be read, before hours of work and not after them."""
    for path in map(Path, params.decontaminate):
        if not path.is_file():
            raise UserError(f"clean.decontaminate: {path}: no such file")
        if not kind_of(path.name)[0]:
            raise UserError(f"clean.decontaminate: {path}: unknown type of file; {ALLOWED}")


def of_benchmarks(params: Clean, val_texts: Iterable[pa.Array]) -> np.ndarray:
    """The sorted hashes of the n-grams of the files of `decontaminate`."""
    return _hashes((_file_texts(Path(name)) for name in params.decontaminate), params.decontaminate_ngram)


def of_val(params: Clean, val_texts: Iterable[pa.Array]) -> np.ndarray:
    """The sorted hashes of the n-grams of val."""
    return _hashes(val_texts, params.decontaminate_ngram)


def overlaps(texts: pa.Array, n: int, ngram_hashes: np.ndarray) -> np.ndarray:
    """Which texts have an n-gram among the sorted hashes, bool [texts]."""
    hit = np.zeros(len(texts), bool)
    start = 0
    for part in slices(texts) if len(ngram_hashes) else ():
        hash_G, document_G = _sequences(part, n)
        at = np.minimum(np.searchsorted(ngram_hashes, hash_G), len(ngram_hashes) - 1)
        hit[start + document_G[ngram_hashes[at] == hash_G]] = True
        start += len(part)
    return hit


def _hashes(batches: Iterable[pa.Array], n: int) -> np.ndarray:
    hashes = [np.unique(_sequences(part, n)[0]) for batch in batches for part in slices(batch)]
    return np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, np.uint64)


def _sequences(texts: pa.Array, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash and text of every n words in a row; a text that has fewer counts as a whole, or it would be overlooked."""
    batch = Characters(texts)
    hash_G, document_G, _ = ngrams(batch, n)
    hash_S, document_S = whole_texts(batch, n)
    return np.concatenate([hash_G, hash_S]), np.concatenate([document_G, document_S])


def _file_texts(path: Path) -> pa.Array:
    """The texts of a benchmark file: a text file as a whole, else the field `text` of its records."""
    try:
        with path.open("rb") as stream:
            return pa.array(list(Reader(str(path), How("text", "whole", "\n")).documents(stream)), pa.string())
    except UserError as error:
        raise UserError(f"clean.decontaminate: {error}") from None
