"""Documents with their tokens and texts: the whole val set, an even sample of train, the beginning of train.

val = whole(Path("data/tokens/val"), Path("data/clean/val"))
val.tokens_N, val.document_N, val.bytes_D
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipeline.errors import UserError
from pipeline.tokens.store import TokenStore


@dataclass(frozen=True)
class TokenSet:
    """D documents as N tokens in a row, the EOS token of each included."""

    tokens_N: np.ndarray  # int64
    starts_D: np.ndarray  # int64, D + 1: where each document begins, and N
    texts: list[str]
    sources: list[str]

    @cached_property
    def bytes_D(self) -> np.ndarray:
        """UTF-8 bytes of each document's text, int64."""
        return np.array([len(text.encode()) for text in self.texts], np.int64)

    @property
    def n_bytes(self) -> int:
        return int(self.bytes_D.sum())

    def digests(self) -> dict[str, str]:
        """What two sets have in common: "text" of the same documents, "tokens" if the tokenizer is the same too."""
        text = hashlib.sha256("\0".join(self.texts).encode())
        return {"text": text.hexdigest(), "tokens": hashlib.sha256(self.tokens_N.tobytes()).hexdigest()}

    @cached_property
    def lengths_D(self) -> np.ndarray:
        """Tokens of each document, its EOS token included."""
        return np.diff(self.starts_D)

    @cached_property
    def document_N(self) -> np.ndarray:
        """The document of each token."""
        return np.repeat(np.arange(len(self.texts)), self.lengths_D)


def whole(tokens_folder: Path, clean_folder: Path) -> TokenSet:
    """All documents of a split. Raises UserError where the tokens and the texts are not of the same documents."""
    return beginning(tokens_folder, clean_folder, None)


def beginning(tokens_folder: Path, clean_folder: Path, max_bytes: int | None) -> TokenSet:
    """The first documents of a split, as many as fit in `max_bytes` of text (at least one); None: all."""
    tokens = TokenStore(tokens_folder)
    starts = np.asarray(tokens.documents())
    texts: list[str] = []
    sources: list[str] = []
    n_bytes = 0
    for batch in _batches(clean_folder):
        ends = n_bytes + np.cumsum([len(text.as_buffer()) for text in batch.column("text")])
        fits = len(batch) if max_bytes is None else int(np.searchsorted(ends, max_bytes, side="right"))
        taken = batch.slice(0, fits if texts else max(fits, 1))
        texts += taken.column("text").to_pylist()
        sources += taken.column("source").to_pylist()
        n_bytes = int(ends[-1])
        if fits < len(batch):
            break
    if len(texts) > len(starts) - 1 or (max_bytes is None and len(texts) != len(starts) - 1):
        raise UserError(
            f"{clean_folder} holds {len(texts):,} documents, {tokens_folder} {len(starts) - 1:,}; "
            "run: dvc repro tokenize"
        )
    starts = starts[: len(texts) + 1]
    return TokenSet(tokens.read(0, int(starts[-1])), starts, texts, sources)


def _batches(folder: Path) -> Iterator[pa.RecordBatch]:
    """Text and source of the documents of data/clean/{train,val}; UserError for a shard that is damaged."""
    for shard in sorted(folder.glob("*.parquet")):
        try:
            for batch in pq.ParquetFile(shard).iter_batches(batch_size=1024, columns=["text", "source"]):
                if batch.schema.names != ["text", "source"] or any(column.null_count for column in batch.columns):
                    raise ValueError("it lacks a text or a source")
                yield batch
        except (pa.ArrowException, ValueError, OSError) as error:
            raise UserError(f"{shard} is damaged ({error}); run: dvc repro clean") from None


def sample(tokens_folder: Path, tokenizer: Tokenizer, n_tokens: int) -> TokenSet:
    """About `n_tokens` tokens in whole documents spread evenly over a split.

    The texts are what the tokenizer makes of the tokens, which is the text itself for every lossless tokenizer.
    """
    tokens = TokenStore(tokens_folder)
    starts = np.asarray(tokens.documents())
    n_documents = len(starts) - 1
    wanted = min(n_documents, max(1, round(n_documents * n_tokens / tokens.n_tokens)))
    chosen = np.arange(wanted) * n_documents // wanted
    parts = [tokens.read(int(starts[d]), int(starts[d + 1])) for d in chosen]
    texts = tokenizer.decode_batch([part[:-1].tolist() for part in parts], skip_special_tokens=False)
    lengths = [len(part) for part in parts]
    return TokenSet(np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths)]), texts, ["train"] * wanted)
