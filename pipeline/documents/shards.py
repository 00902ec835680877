"""Parquet shards of documents: the same documents in the same order give the same bytes, however they were handed in.

with Shards(folder, schema) as shards:
    shards.write(table)          # any batching
shards.files                     # [{"name": "part-00000.parquet", "documents": 1000, "bytes": 900123}, ...]
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

GROUP_BYTES = 4 * 2**20  # text in a row group: what a reader holds in memory at a time
SHARD_BYTES = 32 * 2**20  # text in a file: what an engine has under way at a time


class Shards:
    """Writes documents to part-00000.parquet, part-00001.parquet, … of a folder.

    A row group ends with the document that fills it, a file with the row group that fills it; both are counted in
    bytes of text, so the cuts depend on the documents alone.
    """

    def __init__(self, folder: Path, schema: pa.Schema, compression: str = "zstd") -> None:
        self.folder, self.schema, self._compression = folder, schema, compression
        self.files: list[dict[str, Any]] = []
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        self._writer: pq.ParquetWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    @property
    def documents(self) -> int:
        return sum(file["documents"] for file in self.files)

    @property
    def bytes(self) -> int:
        return sum(file["bytes"] for file in self.files)

    def write(self, table: pa.Table) -> None:
        """Add documents; `table` has the columns of the schema."""
        table = table.select(self.schema.names).cast(self.schema)
        ends = np.cumsum(byte_lengths(table.column("text")))
        taken = taken_bytes = 0
        while taken < len(table):
            room = GROUP_BYTES - self._waiting_bytes
            cut = int(np.searchsorted(ends, taken_bytes + room)) + 1  # through the document that fills the group
            if cut > len(table):
                self._waiting.append(table.slice(taken))
                self._waiting_bytes += int(ends[-1]) - taken_bytes
                return
            self._waiting.append(table.slice(taken, cut - taken))
            self._waiting_bytes += int(ends[cut - 1]) - taken_bytes
            taken, taken_bytes = cut, int(ends[cut - 1])
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        group = pa.concat_tables(self._waiting).combine_chunks()
        if self._writer is None:
            name = f"part-{len(self.files):05d}.parquet"
            self._writer = pq.ParquetWriter(self.folder / name, self.schema, compression=self._compression)
            self.files.append({"name": name, "documents": 0, "bytes": 0})
        self._writer.write_table(group, row_group_size=len(group))
        self.files[-1]["documents"] += len(group)
        self.files[-1]["bytes"] += self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0
        if self.files[-1]["bytes"] >= SHARD_BYTES:
            self._writer.close()
            self._writer = None


def byte_lengths(texts: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """UTF-8 bytes of each text, int64."""
    return pc.binary_length(texts).cast(pa.int64()).to_numpy(zero_copy_only=False)


def tables(folder: Path) -> Iterator[pa.Table]:
    """The documents of a folder of shards in order, one row group at a time."""
    for path in sorted(folder.glob("part-*.parquet")):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)
