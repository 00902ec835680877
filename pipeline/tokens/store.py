"""Reading a token set: chunks of tokens as one long sequence, and where its documents start.

    store = TokenStore(Path("data/tokens/train"))
    store.read(0, 257), store.documents()

Reads what pipeline/tokenize/writer.py wrote, and any other litdata token set. What is damaged is a UserError that names
the file: the index and all sizes at once, the bytes of a file against its digest when it is first read.
"""

import hashlib
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from pipeline.errors import UserError
from pipeline.tokens.flags import ID

# Numbers of integers in litdata/constants.py, which loads torch.
_DTYPES = {
    "no_header_numpy": dict(enumerate(("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"))),
    "no_header_tensor": {
        **{11: "uint8", 12: "int8", 13: "int16", 14: "int16", 15: "int32", 16: "int32", 17: "int64", 18: "int64"},
        20: "uint16",
    },
}
DOCUMENTS = "documents.i64"  # beside the chunks; litdata looks only at what index.json lists


class _Chunk(BaseModel):
    filename: str = Field(pattern=r"^[^/\\]+$")
    chunk_size: int = Field(ge=1, description="items, whose offsets stand before the tokens")
    dim: int = Field(ge=1, description="tokens")


class _Layout(BaseModel):
    data_format: Annotated[list[str], Field(min_length=1, max_length=1)]
    compression: Literal[None] = None
    encryption: Literal[None] = None


class _Index(BaseModel):
    """What is read of litdata's index.json, and the SHA-256 of each file, which our writer adds."""

    chunks: list[_Chunk] = Field(min_length=1)
    config: _Layout
    sha256: dict[str, str] = {}
    flags: bool = False  # whether tokens carry those of pipeline/tokens/flags.py; our writer of conversations adds it


class TokenStore:
    """A folder of token chunks as one long sequence, memory-mapped and read-only.

    vocab_size: what the reader can take; a token beyond it is a UserError when its chunk is first read. May be
    pickled, e.g. to workers of a DataLoader: the maps are opened again there.
    """

    def __init__(self, folder: Path, vocab_size: int | None = None) -> None:
        self.folder, self._vocab_size = folder, vocab_size
        path = folder / "index.json"
        try:
            index = _Index.model_validate_json(path.read_bytes())
            self.dtype = _dtype(index.config.data_format[0])
        except FileNotFoundError:
            raise UserError(f"{folder} holds no tokens (no index.json); run: dvc repro tokenize") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            errors = error.errors() if isinstance(error, ValidationError) else []
            why = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in errors[:3]) or error
            raise UserError(f"{path} is not the index of a token set ({why}); {self._again}") from None
        self._sha256, self.flags = index.sha256, index.flags
        self._files: list[tuple[Path, int]] = []  # each chunk and where in it the tokens begin
        self._starts = [0]  # first token of each chunk, and the number of all
        for chunk in index.chunks:
            file, header = folder / chunk.filename, 4 * (chunk.chunk_size + 2)
            expected = header + chunk.dim * self.dtype.itemsize
            found = file.stat().st_size if file.is_file() else 0
            if found != expected:
                raise UserError(f"{file}: {found:,} bytes where index.json has {expected:,}; {self._again}")
            self._files.append((file, header))
            self._starts.append(self._starts[-1] + chunk.dim)
        self.n_tokens = self._starts[-1]
        self._verified: set[Path] = set()
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.n_tokens

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop (exclusive) as int64 [stop - start], with their flags, across chunks where need be.

        Raises IndexError unless 0 <= start <= stop <= n_tokens.
        """
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.n_tokens}")
        tokens = np.empty(stop - start, dtype=np.int64)
        chunk, at = bisect_right(self._starts, start) - 1, start
        while at < stop:
            until = min(stop, self._starts[chunk + 1])
            offset = self._starts[chunk]
            tokens[at - start : until - start] = self._chunk(chunk)[at - offset : until - offset]
            chunk, at = chunk + 1, until
        return tokens

    @property
    def n_documents(self) -> int | None:
        """None where the token set does not say, as those that litdata wrote."""
        path = self.folder / DOCUMENTS
        return path.stat().st_size // 8 - 1 if path.is_file() else None

    def documents(self) -> np.ndarray:
        """Where the documents start: int64 [documents + 1], memory-mapped.

        Document i is tokens [offsets[i], offsets[i + 1]), its EOS token included; the order is that of data/clean.
        """
        path = self.folder / DOCUMENTS
        try:
            starts = np.memmap(path, dtype="<i8", mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is missing or damaged ({error}); {self._again}") from None
        self._verify(path)
        if starts[0] != 0 or starts[-1] != self.n_tokens or (np.diff(starts) <= 0).any():
            raise UserError(f"{path} is damaged: it does not ascend from 0 to {self.n_tokens:,}; {self._again}")
        return starts

    def verify(self) -> None:
        """Check every chunk now, on all cores (about 1 GB/s a core), instead of each when it is first read."""
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(self._chunk, range(len(self._files))):
                pass

    @property
    def _again(self) -> str:
        return f"remove {self.folder} and run: dvc repro tokenize"

    def _chunk(self, i: int) -> np.ndarray:
        mapped = self._maps.get(i)
        if mapped is None:
            path, header = self._files[i]
            mapped = np.memmap(path, dtype=self.dtype, mode="r", offset=header)
            if path not in self._verified:
                self._verify(path)
                if self._vocab_size is not None:
                    self._refuse_beyond_vocabulary(path, mapped)
            self._maps[i] = mapped
        return mapped

    def _refuse_beyond_vocabulary(self, path: Path, tokens: np.ndarray) -> None:
        ids = tokens & ID if self.flags else tokens
        for token in (ids.min(), ids.max()):
            if not 0 <= token < (self._vocab_size or 0):
                raise UserError(
                    f"{path} holds token {token}, but the vocabulary has {self._vocab_size} tokens; {self._again}"
                )

    def _verify(self, path: Path) -> None:
        expected = self._sha256.get(path.name)
        if expected is not None and sha256(path) != expected:
            raise UserError(f"{path} is damaged: its SHA-256 is not the one in index.json; {self._again}")
        self._verified.add(path)


def sha256(path: Path) -> str:
    """Digest of a file of a token set, as index.json has it: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _dtype(data_format: str) -> np.dtype:
    """litdata's name of a type of integers, e.g. "no_header_numpy:5"."""
    kind, _, number = data_format.partition(":")
    known = _DTYPES.get(kind, {}).get(int(number))
    if known is None:
        raise ValueError(f"data_format {data_format}: no integers")
    return np.dtype(known)
