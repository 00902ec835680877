"""Writing the token set: every document followed by the EOS token, in litdata chunks of one size.

    report = write(params.tokenizer, Path("data/tokenizer"), Path("data/clean"), Path("data/tokens"))

`litgpt.data.LitData` and `StreamingDataset(item_loader=TokensLoader(...))` read the folders as they stand. The same
documents give the same files, byte for byte, on any number of threads.
"""

import hashlib
import json
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from litdata.streaming.item_loader import TokensLoader
from litdata.streaming.writer import BinaryWriter
from tokenizers import Tokenizer

from pipeline import console, params
from pipeline.errors import UserError
from pipeline.tokenize import texts
from pipeline.tokenize import tokenizer as vocabulary
from pipeline.tokens.store import DOCUMENTS, sha256
from pipeline.tokens.tokenizer import eos_id, load, vocab_size

_BATCH_CHARS = 2_000_000  # encoded at a time: the threads of a smaller batch wait for its last document too often
_IN_FLIGHT = 3  # batches: one is written while two are encoded
_SHOWN = 20  # most and least used tokens in the report

_EMPTY = {
    "train": "see reports/clean.json for what was dropped",
    "val": "give more documents, or raise clean.val_fraction",
}


def write(
    params: params.Tokenizer, tokenizer: Path, clean: Path, into: Path, plots: Path | None = None
) -> dict[str, Any]:
    """Tokenize data/clean/{train,val} with the tokenizer in a folder into `into`/{train,val}; return the report.

    Tokens are uint16 where the vocabulary allows, else int32. Memory does not grow with the corpus. Draws
    `plots`/tokens.png. Raises UserError if a split holds no documents.
    """
    encoder, eos = load(tokenizer), eos_id(tokenizer)
    n_vocab = vocab_size(tokenizer)
    dtype = np.dtype(np.uint16 if n_vocab <= 2**16 else np.int32)
    report: dict[str, Any] = {"vocab_size": n_vocab, "dtype": dtype.name}
    counts = np.zeros(0, np.int64)  # of the training set's tokens
    for split in ("train", "val"):
        tally = _Tally(n_vocab)
        with Writer(into / split, params.chunk_tokens, dtype) as writer:
            total = texts.count(clean / split)
            with console.progress(f"tokenizing {split}", total, "documents") as advance:
                for batch in _encoded(encoder, eos, clean / split):
                    tally.add(batch)
                    writer.add(batch.ids, batch.ends)
                    advance(len(batch.ends))
            if not tally.documents:
                raise UserError(f"{clean / split} holds no documents; {_EMPTY[split]}")
        report[split] = tally.report(encoder)
        counts = tally.counts if split == "train" else counts
    if plots:  # now that neither split is empty: a stage that fails leaves nothing
        _draw(counts, plots / "tokens.png")
    return report


@dataclass(frozen=True)
class _Batch:
    ids: np.ndarray  # int32: tokens of documents, an EOS token after each
    ends: np.ndarray  # int64: where in `ids` a document is over, just past its EOS token
    n_bytes: int
    n_characters: int
    n_words: int


def _encoded(encoder: Tokenizer, eos: int, split: Path) -> Iterator[_Batch]:
    """Encode the documents of a split in their order, on all cores.

    `encode_batch_fast` spreads a batch over threads and lets go of the interpreter meanwhile; a second batch under
    way keeps the cores busy while the last documents of the first are finished and its result is taken over.
    """
    pending: deque[Future[_Batch]] = deque()
    further = texts.further(encoder)
    with ThreadPoolExecutor(_IN_FLIGHT - 1) as pool:
        for pieces in _batches(split, before_space=further is not None):
            pending.append(pool.submit(_encode, encoder, further or encoder, eos, pieces))
            if len(pending) == _IN_FLIGHT:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _batches(split: Path, before_space: bool) -> Iterator[list[tuple[str, bool, bool]]]:
    """Pieces of documents, with whether a document begins and ends there, about as many bytes at a time."""
    batch: list[tuple[str, bool, bool]] = []
    size = 0
    for documents in texts.batches(split):
        for document in documents:
            for number, (piece, last) in enumerate(texts.pieces(document, before_space)):
                batch.append((piece, number == 0, last))
                size += len(piece)
                if size >= _BATCH_CHARS:
                    yield batch
                    batch, size = [], 0
    if batch:
        yield batch


def _encode(encoder: Tokenizer, further: Tokenizer, eos: int, pieces: list[tuple[str, bool, bool]]) -> _Batch:
    written = [text for text, _, _ in pieces]
    ids = array("i")
    ends = []
    encodings = texts.encode(encoder, written)
    for encoding, (text, first, last) in zip(encodings, pieces, strict=True):
        if not first and further is not encoder:  # rare: a document of more than PIECE_CHARS
            [encoding] = texts.encode(further, [text])
        ids.fromlist(encoding.ids)
        if last:
            ids.append(eos)
            ends.append(len(ids))
    joined = "\n".join(written).encode()
    return _Batch(
        ids=np.frombuffer(ids, dtype=np.int32),
        ends=np.array(ends, dtype=np.int64),
        n_bytes=len(joined) - (len(written) - 1),
        n_characters=sum(map(len, written)),
        n_words=_count_words(joined),
    )


def _count_words(text: bytes) -> int:
    """Runs of bytes between ASCII white space."""
    blank = np.frombuffer(text, dtype=np.uint8) <= 0x20
    return int(np.count_nonzero(blank[:-1] & ~blank[1:])) + int(len(blank) > 0 and not blank[0])


def _draw(counts: np.ndarray, path: Path) -> None:
    """How often each token of the training set is used, by rank; a straight line is Zipf's law."""
    from pipeline import plotting

    used = np.sort(counts[counts > 0])[::-1]
    title = f"{len(used):,} of {len(counts):,} tokens used in training text"
    with plotting.style():
        figure, axes = plotting.new(6, 4, title=title, xlabel="rank", ylabel="uses", xscale="log", yscale="log")
        axes.plot(np.arange(1, len(used) + 1), used, color=plotting.FIRST)
        plotting.save(figure, path)


class Writer:
    """Chunks of `chunk_tokens` tokens (the last one shorter), index.json, and where documents start.

    A chunk is one litdata item, so its tokens lie in one run; documents go on from chunk to chunk.
    """

    def __init__(self, folder: Path, chunk_tokens: int, dtype: np.dtype, flags: bool = False) -> None:
        """`flags`: tokens carry those of pipeline/tokens/flags.py, and the index says so."""
        self._folder, self._chunk_tokens = folder, chunk_tokens
        self._litdata = BinaryWriter(str(folder), chunk_size=chunk_tokens, item_loader=TokensLoader())
        self._buffer = np.empty(chunk_tokens, dtype=dtype)
        self._filled = self._chunks = self._n_tokens = 0
        self._flags = flags
        self._starts = (folder / DOCUMENTS).open("wb")
        self._starts.write(np.int64(0).tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._starts.close()
        if kind is None:
            self._flush()
            self._litdata.done()
            self._litdata.merge()
            self._settle_index()

    def add(self, ids: np.ndarray, ends: np.ndarray) -> None:
        self._starts.write((ends + self._n_tokens).astype("<i8").tobytes())
        self._n_tokens += len(ids)
        while len(ids):
            taken = ids[: self._chunk_tokens - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            ids = ids[len(taken) :]
            if self._filled == self._chunk_tokens:
                self._flush()

    def _flush(self) -> None:
        if self._filled:
            chunk = self._buffer[: self._filled].copy()  # litdata keeps it until the next one comes
            self._litdata[self._chunks] = chunk
            self._chunks += 1
            self._filled = 0

    def _settle_index(self) -> None:
        """Add each file's digest, and put one of them all where litdata puts the time: it names litdata's cache of a
        remote set, so it must change when the tokens do and, for equal files from equal input, only then."""
        path = self._folder / "index.json"
        index = json.loads(path.read_text(encoding="utf-8"))
        names = [*(chunk["filename"] for chunk in index["chunks"]), DOCUMENTS]
        if self._flags:
            index["flags"] = True
        index["sha256"] = {name: sha256(self._folder / name) for name in names}
        index["updated_at"] = hashlib.sha256("".join(index["sha256"].values()).encode()).hexdigest()
        path.write_text(json.dumps(index, sort_keys=True, indent=1) + "\n", encoding="utf-8")


class _Tally:
    """What the report says of a split."""

    def __init__(self, n_vocab: int) -> None:
        self.documents = 0
        self._bytes = self._characters = self._words = 0
        self.counts = np.zeros(n_vocab, dtype=np.int64)

    def add(self, batch: _Batch) -> None:
        self.documents += len(batch.ends)
        self._bytes += batch.n_bytes
        self._characters += batch.n_characters
        self._words += batch.n_words
        self.counts += np.bincount(batch.ids, minlength=len(self.counts))

    def report(self, encoder: Tokenizer) -> dict[str, Any]:
        n_tokens = int(self.counts.sum())
        of_text = n_tokens - self.documents  # without the EOS tokens
        foreign = vocabulary.fallback_ids(encoder)
        unknown = vocabulary.unknown_id(encoder)
        order = np.argsort(-self.counts, kind="stable")
        used = order[self.counts[order] > 0]
        return {
            "documents": self.documents,
            "bytes": self._bytes,
            "characters": self._characters,
            "words": self._words,
            "tokens": n_tokens,
            "bytes_per_token": self._bytes / max(of_text, 1),
            "characters_per_token": self._characters / max(of_text, 1),
            "tokens_per_word": of_text / max(self._words, 1),
            "unknown_share": float(self.counts[unknown]) / n_tokens if unknown is not None else 0.0,
            "fallback_share": float(self.counts[foreign].sum()) / n_tokens,
            "vocabulary_used": len(used),
            "most_used": [self._shown(encoder, i) for i in used[:_SHOWN]],
            "least_used": [self._shown(encoder, i) for i in used[::-1][:_SHOWN]],
        }

    def _shown(self, encoder: Tokenizer, token_id: int) -> dict[str, Any]:
        token = encoder.decode([int(token_id)], skip_special_tokens=False)
        return {"id": int(token_id), "token": token, "count": int(self.counts[token_id])}
