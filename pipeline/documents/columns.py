"""Columns of text out of a Parquet file, some rows at a time.

for row, record in records(stream, ["text"]):
    record["text"]                       # a str, or None where the file has null

Memory holds some megabytes of text, however many rows a row group has and however long they are.
"""

from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError

_ROWS, _BYTES = 1024, 8 * 2**20  # decoded at a time
_BUFFER = 2**20  # of the file read at a time: without one, pyarrow reads a row group's column as a whole


def names(stream: IO[bytes]) -> list[str]:
    """The columns of the file."""
    return list(pq.read_schema(stream).names)


def records(stream: IO[bytes], columns: list[str]) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Yield (row, values of the columns). A damaged file raises what pyarrow raises (reading.in_words).

    Raises UserError for a column that is not there, is there twice or is no text, and for text that is not UTF-8.
    """
    file = pq.ParquetFile(stream, buffer_size=_BUFFER)
    known = file.schema_arrow.names
    for column in columns:
        if column not in known:
            raise UserError(f"no column {column!r}; there is {', '.join(known)} (download.text_column)")
        if known.count(column) > 1:
            raise UserError(f"{known.count(column)} columns are called {column!r}; give each a name of its own")
        if not _is_text(kind := file.schema_arrow.field(column).type):
            raise UserError(f"column {column!r} is {kind}, not text")
    row = 0
    for batch in file.iter_batches(batch_size=_batch_rows(file), columns=columns):
        for record in _decoded(batch, row):
            yield row, record
            row += 1


def rows(stream: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row, values of all columns); lists and structs as Python's."""
    file = pq.ParquetFile(stream, buffer_size=_BUFFER)
    row = 0
    for batch in file.iter_batches(batch_size=_batch_rows(file)):
        for record in _decoded(batch, row):
            yield row, record
            row += 1


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())


def _decoded(batch: pa.RecordBatch, row: int) -> list[dict[str, Any]]:
    try:
        texts = batch.to_pylist()
        for record in texts:
            record.update({name: value.decode() for name, value in record.items() if isinstance(value, bytes)})
        return texts
    except UnicodeDecodeError as error:
        raise UserError(f"rows {row} to {row + len(batch) - 1}: not UTF-8 ({error.reason})") from None


def _batch_rows(file: pq.ParquetFile) -> int:
    """Rows that take about _BYTES, going by the row group with the longest rows.

    By whole rows: asking for a column's own size ends the process where the metadata are damaged.
    """
    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
    rows = [_BYTES * group.num_rows // max(1, group.total_byte_size) for group in groups]
    return max(1, min([_ROWS, *rows]))
