"""Training documents that share a sequence of words with val or a benchmark (the n-gram rule of GPT-3, appendix C).

A text shorter than a sequence is sought as a whole: it drops a training document that says the same and no more.

for reason, ngrams in sought(params, val_texts).items():
    drop = overlaps(texts, params.decontaminate_ngram, ngrams)
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.clean.quality import Characters, ngrams, slices, whole_texts
from pipeline.documents.reading import ALLOWED, How, Reader, kind_of
from pipeline.errors import UserError
from pipeline.params import Clean


def sought(params: Clean, val_texts: Callable[[], Iterable[pa.Array]]) -> dict[str, np.ndarray]:
    """The sorted hashes of what must not stand in train, by the reason that a document is dropped for."""
    n, found = params.decontaminate_ngram, {}
    if params.decontaminate:
        found["benchmark_overlap"] = _hashes((_file_texts(Path(name)) for name in params.decontaminate), n)
    if params.decontaminate_val:
        found["val_overlap"] = _hashes(val_texts(), n)
    return found


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
    if not path.is_file():
        raise UserError(f"clean.decontaminate: {path}: no such file")
    if not kind_of(path.name)[0]:
        raise UserError(f"clean.decontaminate: {path}: unknown type of file; {ALLOWED}")
    with path.open("rb") as stream:
        return pa.array(list(Reader(str(path), How("text", "whole", "\n")).documents(stream)), pa.string())
