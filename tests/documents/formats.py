"""Files of every format, made of the same documents."""

import gzip
import io
import json
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pipeline.documents.reading import How, Reader

AUTO = How("text", "auto", "<|endoftext|>")
STORIES = [f"Once there was a fox named Nr {n}.\n\n“Hello,” said 狐狸 {n * n}." for n in range(50)]

PARAGRAPHS = [
    f"Tim and Sue went to park number {n} to play with the big red ball. They ran and laughed all day in the sun."
    for n in range(40)
]


def read(
    data: bytes, name: str, split: str = "auto", dropped: Counter[str] | None = None, column: str = "text"
) -> list[str]:
    """The documents of a file with this name and content."""
    how = How(column, split, "<|endoftext|>")
    return list(Reader(name, how, dropped=Counter() if dropped is None else dropped).documents(io.BytesIO(data)))


def files(content: dict[str, bytes]) -> list[tuple[str, Callable[[], io.BytesIO]]]:
    """Name and opener of each, as sources give them."""
    return [(name, partial(io.BytesIO, data)) for name, data in content.items()]


def as_jsonl(documents: list[str], column: str = "text") -> bytes:
    return "".join(json.dumps({column: text, "id": 7}) + "\n" for text in documents).encode()


def as_json(documents: list[str]) -> bytes:
    return json.dumps([{"text": text} for text in documents], indent=1).encode()


def as_parquet(documents: list[str], column: str = "text", compression: str = "snappy") -> bytes:
    out = io.BytesIO()
    table = pa.table({"id": list(range(len(documents))), column: documents})
    pq.write_table(table, out, row_group_size=7, compression=compression)
    return out.getvalue()


def as_text(documents: list[str]) -> bytes:
    return "\n<|endoftext|>\n".join(documents).encode()


def as_tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def as_zip(files: dict[str, bytes], packing: int = zipfile.ZIP_STORED, links: tuple[str, ...] = ()) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (stat.S_IFLNK if name in links else stat.S_IFREG) << 16
            archive.writestr(member, data, packing)
    return out.getvalue()


FORMATS = {
    "stories.txt": as_text(STORIES),
    "stories.txt.zst": zstandard.compress(as_text(STORIES)),
    "stories.jsonl": as_jsonl(STORIES),
    "stories.jsonl.gz": gzip.compress(as_jsonl(STORIES)),
    "stories.json": as_json(STORIES),
    "stories.parquet": as_parquet(STORIES),
    "stories.parquet.gz": gzip.compress(as_parquet(STORIES)),
    "stories.zip": as_zip(
        {
            "README": b"no data",
            "__MACOSX/x.txt": b"no data",
            "a/part.txt": as_text(STORIES[:9]),
            "b.jsonl": as_jsonl(STORIES[9:]),
        }
    ),
    "stories.tar.gz": gzip.compress(as_tar({"a.parquet": as_parquet(STORIES[:9]), "b.txt": as_text(STORIES[9:])})),
}
