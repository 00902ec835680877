"""Columns of text out of a Parquet file, some rows at a time.

for row, record in records(stream, ["text"]):
    record["text"]                       # a str, or None where the file has null

Memory holds some megabytes of text, however many rows a row group has and however long they are.
"""

from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.documents import splitting
from pipeline.errors import UserError

_ROWS, _BYTES = 1024, 8 * 2**20  # decoded at a time
_BUFFER = 2**20  # of the file read at a time: without one, pyarrow reads a row group's column as a whole


def names(stream: IO[bytes]) -> list[str]:
    """The columns of the file. Raises UserError if it is damaged."""
    try:
        return list(pq.read_schema(stream).names)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(error, 0) from None


def records(stream: IO[bytes], columns: list[str]) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Yield (row, values of the columns). Raises UserError that names the row, for the caller to put the file before:
    a column that is no text, damage, text that is not UTF-8 or longer than splitting.MAX_DOCUMENT_CHARS."""
    row = 0
    try:
        file = pq.ParquetFile(stream, buffer_size=_BUFFER)
        for column in columns:
            kind = file.schema_arrow.field(column).type
            if not any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string)):
                raise UserError(f"column {column!r} is {kind}, not text")
        for batch in file.iter_batches(batch_size=_batch_rows(file, columns), columns=columns):
            for record in _decoded(batch, row):
                yield row, record
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise _damaged(error, row) from None


def _decoded(batch: pa.RecordBatch, row: int) -> list[dict[str, Any]]:
    try:
        texts = batch.to_pylist()
    except UnicodeDecodeError as error:
        raise UserError(f"rows {row} to {row + len(batch) - 1}: not UTF-8 ({error.reason})") from None
    for at, record in enumerate(texts):
        if any(len(text or "") > splitting.MAX_DOCUMENT_CHARS for text in record.values()):
            raise UserError(f"row {row + at}: text longer than {splitting.MAX_DOCUMENT_CHARS:,} characters")
    return texts


def _batch_rows(file: pq.ParquetFile, columns: list[str]) -> int:
    """Rows that take about _BYTES, going by the row group with the longest rows."""
    least = _ROWS
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        parts = [group.column(i) for i in range(group.num_columns)]
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema in columns)
        least = min(least, _BYTES * group.num_rows // max(1, size))
    return max(1, least)


def _damaged(error: Exception, row: int) -> UserError:
    return UserError(f"damaged parquet after {row:,} rows ({' '.join(str(error).split())[:200]})")
