"""Documents out of files: .txt, .jsonl, .json, .parquet, each also .gz or .zst, and .zip or .tar archives of them.

reader = Reader("stories.txt.gz", how)
for text in reader.documents(open("stories.txt.gz", "rb")): ...
reader.guesses        # {"lone_newlines: …why…": 1}

Text streams through: memory holds one document, not one file. Text that is not UTF-8 is refused with its place,
never repaired in passing: only the user knows whether a bad byte is damage or another encoding.
"""

import codecs
import gzip
import io
import itertools
import json
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from shutil import copyfileobj
from typing import IO, Any, cast

import zstandard

from pipeline import console
from pipeline.documents import columns, splitting
from pipeline.errors import UserError

TEXT, JSON, PARQUET, ARCHIVES = (
    (".txt", ".text", ".md"),
    (".jsonl", ".ndjson", ".json"),
    (".parquet",),
    (".zip", ".tar"),
)
_PACKED = (".gz", ".zst")
ALLOWED = "allowed: .txt, .jsonl, .json, .parquet, also .gz or .zst, and .zip or .tar archives of them"
_ABOUT = ("README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "CHANGELOG", "CITATION")
_CHUNK = 2**20
_ESCAPE = len(r"\u0000")  # what a cut within a string may leave at the end
_SPACE = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class How:
    """Where the text stands in a file (see the params of the same names)."""

    text_column: str
    split: str
    separator: str


def kind_of(name: str) -> tuple[str, str]:
    """The format and the packing of a file name, as ('.jsonl', '.gz'); ('', '') for one that is not read."""
    name = name.lower().replace(".tgz", ".tar.gz")
    packing = PurePosixPath(name).suffix
    packing = packing if packing in _PACKED else ""
    form = PurePosixPath(name.removesuffix(packing)).suffix
    return (form, packing) if form in (*TEXT, *JSON, *PARQUET, *ARCHIVES) else ("", "")


def not_data(name: str) -> str:
    """Why a file of a folder or an archive holds no documents, in words; "" where it may."""
    path = PurePosixPath(name)
    if any(part.startswith((".", "__MACOSX")) for part in path.parts if part != "."):
        return "a hidden file"
    if path.name.split(".")[0].upper() in _ABOUT:
        return "about the data, not of it"
    return "" if kind_of(name)[0] else f"unknown type of file; {ALLOWED}"


@dataclass
class Reader:
    """Reads one file. `guesses` counts what `split: auto` decided, in words."""

    name: str
    how: How
    guesses: Counter[str] = field(default_factory=Counter)

    def documents(self, stream: IO[bytes]) -> Iterator[str]:
        """Yield the texts; `stream` must seek for .parquet and .zip. Raises UserError that names file and place."""
        count = 0
        try:
            for text in self._unpacked(self.name, stream):
                yield text
                count += 1
        except UserError as error:
            if str(error).startswith(self.name):
                raise
            raise UserError(f"{self.name}: {error}") from None
        except (
            EOFError,
            zlib.error,
            gzip.BadGzipFile,
            zstandard.ZstdError,
            zipfile.BadZipFile,
            tarfile.ReadError,
        ) as error:
            raise UserError(f"{self.name}: damaged or cut short after {count:,} documents ({error})") from None

    def _unpacked(self, name: str, stream: IO[bytes], seeks: bool = True) -> Iterator[str]:
        form, packing = kind_of(name)
        if not form:
            raise UserError(f"{name}: unknown type of file; {ALLOWED}")
        if packing == ".gz":
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=stream))
        elif packing == ".zst":
            stream = io.BufferedReader(_Zstd(stream), _CHUNK)
        if form in PARQUET or form == ".zip":
            with tempfile.TemporaryFile() as whole:
                if packing or not seeks:
                    copyfileobj(stream, whole, _CHUNK)
                    stream = whole
                yield from self._parquet(stream) if form in PARQUET else self._zip(stream)
        elif form == ".tar":
            yield from self._tar(stream)
        elif form in JSON:
            yield from self._json(stream)
        else:
            yield from self._text(stream)

    def _text(self, stream: IO[bytes]) -> Iterator[str]:
        chunks = _decoded(stream)
        if self.how.split != "auto":
            return splitting.split(chunks, self.how.split, self.how.separator)
        first = next(chunks, "")
        how, why = splitting.guess(first, self.how.separator)
        self.guesses[f"{how}: {why}"] += 1
        return splitting.split(itertools.chain([first], chunks), how, self.how.separator)

    def _json(self, stream: IO[bytes]) -> Iterator[str]:
        column = self.how.text_column
        for place, record in _records(stream):
            if not isinstance(record, dict) or column not in record:
                known = ", ".join(record) if isinstance(record, dict) else f"a {type(record).__name__}"
                raise UserError(f"{place}: no field {column!r}; there is {known or 'none'} (download.text_column)")
            text = record[column]
            if not isinstance(text, str):
                raise UserError(f"{place}: field {column!r} is {json.dumps(text)[:60]}, not text")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"{place}: not Unicode text: {error.reason} at character {error.start}") from None
            if text and not text.isspace():
                yield text

    def _parquet(self, stream: IO[bytes]) -> Iterator[str]:
        column, names = self.how.text_column, columns.names(stream)
        if column not in names:
            raise UserError(f"no column {column!r}; there is {', '.join(names)} (download.text_column)")
        for _, record in columns.records(stream, [column]):
            text = record[column]
            if text and not text.isspace():
                yield text

    def _zip(self, stream: IO[bytes]) -> Iterator[str]:
        with zipfile.ZipFile(stream) as archive:
            for member in archive.infolist():
                if member.is_dir() or not _safe(member.filename):
                    continue
                try:
                    inner = archive.open(member)
                except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in a way that Python lacks
                    raise UserError(f"{member.filename}: {error}; unpack the archive and give the folder") from None
                with inner:
                    yield from self._member(member.filename, inner)

    def _tar(self, stream: IO[bytes]) -> Iterator[str]:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if member.issym() or member.islnk():
                    raise UserError(f"{member.name} is a link; links in an archive are refused")
                inner = archive.extractfile(member) if _safe(member.name) and member.isfile() else None
                if inner is not None:
                    yield from self._member(member.name, inner)

    def _member(self, name: str, inner: IO[bytes]) -> Iterator[str]:
        if why := not_data(name):
            console.warn(f"{self.name}: {name} is left out: {why}")
            return
        try:
            yield from self._unpacked(name, inner, seeks=False)
        except UserError as error:
            raise UserError(f"{name}: {error}" if not str(error).startswith(name) else str(error)) from None


class _Zstd(io.RawIOBase):
    """Zstandard as a stream that notices a missing end, which zstandard's own reader takes for the end."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed, self._frame, self._ready = packed, zstandard.ZstdDecompressor().decompressobj(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._frame.unused_data if self._frame.eof else b""
            block = block or self._packed.read(_CHUNK // 8)
            if not block:
                if not self._frame.eof:
                    raise EOFError("the zstd frame has no end")
                return 0
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = self._frame.decompress(block)
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n


def _decoded(stream: IO[bytes]) -> Iterator[str]:
    """The text of a UTF-8 stream in chunks, line ends as `\\n`, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    seen = lines = 0
    while True:
        block = stream.read(_CHUNK)
        seen += len(block)
        try:
            text = newlines.decode(block, final=not block)
        except UnicodeDecodeError as error:
            start = seen - len(error.object) + error.start
            lines += error.object[: error.start].count(b"\n")
            raise UserError(
                f"line {lines + 1}, byte {start}: not UTF-8 (byte 0x{error.object[error.start]:02x}); convert it, "
                "e.g. `iconv -f CP1252 -t UTF-8`"
            ) from None
        lines += text.count("\n")
        if text:
            yield text
        if not block:
            return


def _records(stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Every (place, record) of JSON lines, or of one JSON array of records."""
    chunks = _decoded(stream)
    first = next(chunks, "")
    chunks = itertools.chain([first], chunks)
    if first.lstrip().startswith("["):
        yield from _json_array(chunks)
        return
    for number, line in enumerate(splitting.pieces(chunks, "\n"), start=1):
        if line and not line.isspace():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"line {number}: not JSON ({error.msg}): {line[:60]!r}") from None
            yield f"line {number}", record


def _json_array(chunks: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """The records of `[{...}, {...}]`, which needs not fit into memory."""
    decoder, buffer, number = json.JSONDecoder(), next(chunks).lstrip()[1:], 0
    for chunk in itertools.chain(chunks, [""]):
        buffer, position = buffer + chunk, 0
        while (start := _SPACE.match(buffer, position).end()) < len(buffer) and buffer[start] != "]":  # type: ignore[union-attr]
            try:
                record, position = decoder.raw_decode(buffer, start)
            except json.JSONDecodeError as error:
                where, shown = f"record {number + 1}", repr(buffer[start : start + 60])
                if chunk and len(buffer) - start < splitting.MAX_DOCUMENT_CHARS:
                    break  # half a record
                if chunk and (error.pos >= len(buffer) - _ESCAPE or error.msg.startswith("Unterminated string")):
                    bound = f"{splitting.MAX_DOCUMENT_CHARS:,} characters"
                    raise UserError(f"{where}: longer than {bound}, or it has no end: {shown}") from None
                raise UserError(f"{where}: not JSON ({error.msg}): {shown}") from None
            number += 1
            yield f"record {number}", record
        buffer = buffer[position:]
    if not buffer.rstrip().endswith("]"):
        raise EOFError("the JSON array has no end")


def _safe(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise UserError(f"{name}: a path that climbs out of its archive; the archive is refused")
    return True
