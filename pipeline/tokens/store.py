"""Reading a token set: chunks of tokens as one long sequence, and where its documents start.

    store = TokenStore(Path("data/tokens/train")); store.read(0, 257)
    starts = documents(Path("data/tokens/train"))

Reads what pipeline/tokenize/writer.py wrote, and any other litdata token set.
"""

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
from litdata.constants import _NUMPY_DTYPES_MAPPING, _TORCH_DTYPES_MAPPING

from pipeline.errors import UserError

DOCUMENTS = "documents.i64"  # beside the chunks; litdata looks only at what index.json lists


class TokenStore:
    """A folder of token chunks as one long sequence, memory-mapped and read-only.

    Reads what `write` made, and any other litdata token set (uncompressed, items of one dimension). May be pickled,
    e.g. to workers of a DataLoader: the maps are opened again there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            chunks, layout = index["chunks"], index["config"]
            self.dtype = _numpy_dtype(layout["data_format"][0])
        except FileNotFoundError:
            raise UserError(f"{folder} holds no tokens (no index.json); run: dvc repro tokenize") from None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{folder / 'index.json'} is not the index of a token set: {error!r}") from None
        if layout.get("compression") or layout.get("encryption"):
            raise UserError(f"{folder} is compressed or encrypted; write it again without")
        self._files: list[tuple[Path, int]] = []  # each chunk and where in it the tokens begin
        self._starts = [0]  # first token of each chunk, and the number of all
        for chunk in chunks:
            path, header = folder / chunk["filename"], 4 * (chunk["chunk_size"] + 2)
            expected = header + chunk["dim"] * self.dtype.itemsize
            found = path.stat().st_size if path.is_file() else 0
            if found != expected:
                raise UserError(f"{path}: {found:,} bytes where index.json has {expected:,}; run: dvc repro tokenize")
            self._files.append((path, header))
            self._starts.append(self._starts[-1] + chunk["dim"])
        self.n_tokens = self._starts[-1]
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.n_tokens

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop (exclusive) as int64 [stop - start], across chunks where need be.

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

    def _chunk(self, i: int) -> np.ndarray:
        mapped = self._maps.get(i)
        if mapped is None:
            path, header = self._files[i]
            mapped = self._maps[i] = np.memmap(path, dtype=self.dtype, mode="r", offset=header)
        return mapped


def documents(folder: Path) -> np.ndarray:
    """Where the documents of data/tokens/{train,val} start: int64 [documents + 1], memory-mapped.

    Document i is tokens [offsets[i], offsets[i + 1]), its EOS token included; the order is that of data/clean.
    """
    path = folder / DOCUMENTS
    try:
        return np.memmap(path, dtype="<i8", mode="r")
    except (FileNotFoundError, ValueError):
        raise UserError(f"{path} is not there or damaged; run: dvc repro tokenize") from None


def _numpy_dtype(data_format: str) -> np.dtype:
    """litdata's name of a token type, e.g. "no_header_numpy:5", through its own tables."""
    kind, number = data_format.split(":")
    if kind == "no_header_numpy":
        return np.dtype(_NUMPY_DTYPES_MAPPING[int(number)])
    if kind == "no_header_tensor":
        return np.dtype(str(_TORCH_DTYPES_MAPPING[int(number)]).removeprefix("torch."))
    raise ValueError(f"data_format {data_format}")
