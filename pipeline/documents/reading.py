"""Documents out of files: .txt, .jsonl, .json, .parquet, each also .gz or .zst, and .zip or .tar archives of them.

reader = Reader("stories.txt.gz", how)
for text in reader.documents(open("stories.txt.gz", "rb")): ...
reader.guesses, reader.dropped        # {"lone_newlines: …why…": 1}, {"null": 3}

Text streams through: memory holds one document, not one file. Every document in is a document out, or is counted in
`dropped` with its reason, or an error names its place.
"""

import io
import itertools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from shutil import copyfileobj
from statistics import median
from typing import IO, Any

from pipeline import console
from pipeline.documents import archives, columns, json_records, splitting
from pipeline.documents.decoding import CHUNK, decoded, peekable, refuse_odd
from pipeline.errors import UserError, refusal

TEXT, JSON, PARQUET, ARCHIVES = (
    (".txt", ".text", ".md"),
    (".jsonl", ".ndjson", ".json"),
    (".parquet",),
    (".zip", ".tar"),
)
_PACKED = (".gz", ".zst")
ALLOWED = "allowed: .txt, .jsonl, .json, .parquet, also .gz or .zst, and .zip or .tar archives of them"
_ABOUT = ("README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "CHANGELOG", "CITATION", "MANIFEST", "DATASET_INFO")
_HIDDEN = (".", "__MACOSX", "_delta_log", "_spark_metadata", "_temporary")
_SAMPLED, _COUNTED, _SAMPLE = 64, 4096, 2**16  # files of a set that are looked into, and counted; bytes of each
_SET = 3  # files at least, to be judged together
_DEPTH = 2  # archives within archives that are read

Opener = Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True)
class How:
    """Where the text is in a file (see the params of the same names)."""

    text_column: str | None  # None: each record whole, as JSON with its place
    split: str
    separator: str


def kind_of(name: str) -> tuple[str, str]:
    """The format and the packing of a file name, as ('.jsonl', '.gz'); ('', '') for one that is not read."""
    name = name.lower().replace(".tgz", ".tar.gz")
    packing = PurePosixPath(name).suffix
    packing = packing if packing in _PACKED else ""
    form = PurePosixPath(name.removesuffix(packing)).suffix
    return (form, packing) if form in (*TEXT, *JSON, *PARQUET, *ARCHIVES) else ("", "")


def not_data(path: str) -> str:
    """Why a file of a folder or an archive holds no documents, in words; "" where it may. path: within that."""
    *folders, name = PurePosixPath(path).parts or ("",)
    if name.startswith(_HIDDEN):
        return "a hidden file"
    if any(folder.startswith(_HIDDEN) and folder != ".." for folder in folders):
        return "in a hidden folder"
    if name.split(".")[0].upper() in _ABOUT:
        return "about the data, not of it"
    return "" if kind_of(name)[0] else f"unknown type of file; {ALLOWED}"


def warn_left_out(place: str, reasons: Mapping[str, str]) -> None:
    """Name the files that were left out, by reason. reasons: why, by the name of the file."""
    for why in dict.fromkeys(reasons.values()):
        names = [shown(name) for name in reasons if reasons[name] == why]
        more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
        console.warn(f"{place}: left out: {', '.join(names[:5])}{more}: {why}")


def shown(text: str) -> str:
    """The text fit for a terminal, JSON and Parquet: a byte of a file name that is not UTF-8 appears as \\xe9."""
    text = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
    return text.encode(errors="backslashreplace").decode()


@contextmanager
def in_words(name: str, read: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into a UserError that names the file.

    read: the documents read so far. What was raised first stays as the cause.
    """
    try:
        yield
    except UserError as error:
        raise UserError(shown(f"{name}: {error}")) from error.__cause__
    except Exception as error:
        if refusal(error):  # by the machine, not for what is in the file
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, OSError) and error.errno:
            words = f"it cannot be read ({error.strerror})"
        elif isinstance(error, NotImplementedError):
            words = f"{reason}; unpack the archive and give the folder"
        else:
            words = f"damaged or cut short after {read():,} documents ({reason})"
        raise UserError(shown(f"{name}: {words}")) from error


def settle(files: Iterable[tuple[str, Opener]], how: How, guesses: Counter[str]) -> How:
    """How the files of one source are read: `split: auto` becomes `whole` where each text file is one document.

    That is so where most text files are short, have no separator, and have at most as many parts as there are files.
    files: (name, function that opens it), each opened before the next is asked for.
    """
    sizes: list[int] = []
    parts: list[int] = []  # the parts of a file, 0 for one that is long or has separators
    total = 0
    for name, opened in itertools.islice(files if how.split == "auto" else (), _COUNTED):
        if kind_of(name)[0] not in TEXT:
            continue
        total += 1
        if len(sizes) < _SAMPLED:
            with in_words(name), opened() as stream:
                start = archives.unpacked(stream, kind_of(name)[1]).read(_SAMPLE)
                text = next(decoded(io.BytesIO(start)), "")
            found = splitting.guess(text, how.separator).how
            short = len(start) < _SAMPLE and not found.startswith("separator")
            sizes.append(len(start))
            parts.append(max(1, sum(1 for _ in splitting.split([text], found, how.separator))) if short else 0)
        if len(sizes) >= _SET and not median(parts):
            break
    if total < _SET or not 0 < median(parts) <= total:
        return how
    why = "whole: the files are short, and each is one document"
    guesses[why] += total
    console.say(f"split: auto takes {why}: of {total:,} files the median one has {median(sizes):,.0f} bytes")
    return replace(how, split="whole")


@dataclass
class Reader:
    """Reads one file. `guesses` counts what `split: auto` decided, `dropped` the documents left out, both in words."""

    name: str
    how: How
    guesses: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    _read: int = 0

    def documents(self, stream: IO[bytes]) -> Iterator[str]:
        """Yield the texts; `stream` must seek for an archive and Parquet. Raises UserError with file and place."""
        with self._in_words(self.name):
            for place, text in self._texts(self.name, stream):
                self._read += 1
                if why := self._unfit(place, text):
                    self.dropped[why] += 1
                else:
                    yield text

    def _in_words(self, name: str) -> AbstractContextManager[None]:
        return in_words(name, lambda: self._read)

    def _unfit(self, place: str, text: Any) -> str:
        """Why a text is dropped; "" for a document. Raises UserError for what is no text."""
        if text is None:
            return "null"
        if not isinstance(text, str):
            raise UserError(f"{place}: field {self.how.text_column!r} is {json.dumps(text)[:60]}, not text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{place}: not Unicode text: {error.reason} at character {error.start}") from None
        if len(text) > splitting.MAX_DOCUMENT_CHARS:
            raise UserError(f"{place}: text longer than {splitting.MAX_DOCUMENT_CHARS:,} characters")
        if not text or text.isspace():
            return "empty or only white space"
        return "with NUL characters" if "\0" in text else ""

    def _texts(self, name: str, stream: IO[bytes], depth: int = 0) -> Iterator[tuple[str, Any]]:
        """Every (place, text) of a file; depth: how many archives it lies in."""
        form, packing = kind_of(name)
        if not form:
            raise UserError(f"unknown type of file; {ALLOWED}")
        stream = peekable(stream)
        refuse_odd(stream.peek(512)[:512], text=False)
        if form in TEXT and self.how.text_column is None:
            raise UserError("records come in .jsonl, .json or .parquet files, and this is text")
        if form in TEXT or form in JSON:
            plain = peekable(archives.unpacked(stream, packing))
            refuse_odd(plain.peek(512)[:512], text=True)
            yield from self._split(plain) if form in TEXT else self._records(json_records.records(decoded(plain)))
        elif not depth and (form == ".tar" or not packing):
            yield from self._seeking(form, stream, packing, depth)
        else:
            with tempfile.TemporaryFile() as whole:
                copyfileobj(archives.unpacked(stream, packing), whole, CHUNK)
                yield from self._seeking(form, whole, "", depth)

    def _seeking(self, form: str, stream: IO[bytes], packing: str, depth: int) -> Iterator[tuple[str, Any]]:
        column = self.how.text_column
        if form in ARCHIVES:
            yield from self._archive(form, stream, packing, depth)
        elif column is None:
            yield from ((f"row {row}", _whole(f"row {row}", record)) for row, record in columns.rows(stream))
        else:
            yield from ((f"row {row}", record[column]) for row, record in columns.records(stream, [column]))

    def _archive(self, form: str, stream: IO[bytes], packing: str, depth: int) -> Iterator[tuple[str, Any]]:
        if depth == _DEPTH:
            raise UserError("an archive in an archive in an archive; unpack it and give the folder")

        def members() -> Iterator[tuple[str, IO[bytes]]]:
            stream.seek(0)
            return archives.members(form, archives.unpacked(stream, packing))

        how, left_out = self.how, {}
        data = ((name, inner) for name, inner in members() if not not_data(name))
        texts = itertools.takewhile(lambda member: kind_of(member[0])[0] in TEXT, data)  # the rest is not gone through
        self.how = settle(((name, inner.__enter__) for name, inner in texts), how, self.guesses)
        for name, inner in members():
            if why := not_data(name):
                left_out[name] = why
                continue
            with self._in_words(name):
                yield from self._texts(name, inner, depth + 1)
        self.how = how
        warn_left_out(shown(self.name), left_out)

    def _split(self, stream: IO[bytes]) -> Iterator[tuple[str, str]]:
        """The documents of a text. A text of only white space is one document, to be dropped."""
        how, chunks = self.how.split, splitting.from_first_text(decoded(stream))
        first = next(chunks, "")
        if how == "auto":
            how = self._guessed(first) if first.strip() else "whole"
        found = splitting.split(itertools.chain([first], chunks), how, self.how.separator)
        for number, text in enumerate(itertools.chain([next(found, "")], found), start=1):
            yield f"document {number}", text

    def _guessed(self, first: str) -> str:
        guess = splitting.guess(first, self.how.separator)
        key = f"{guess.how}: {guess.why}"
        if not self.guesses[key]:  # of many files, the first shows what the documents are like
            console.say(f"{shown(self.name)}: split: auto takes {key}: {guess.look}")
            if not guess.sure:
                console.warn(
                    f"{shown(self.name)}: no way to split it gives documents of similar length; {guess.how} "
                    "is the safest. Try `moe preview`, set download.split and download.separator, or give JSON lines"
                )
        self.guesses[key] += 1
        return guess.how

    def _records(self, records: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        column = self.how.text_column
        for place, record in records:
            if column is None:
                yield place, _whole(place, record)
                continue
            if not isinstance(record, dict) or column not in record:
                raise UserError(f"{place}: no field {column!r}; there is {_fields(record)} (download.text_column)")
            yield place, record[column]


def _whole(place: str, record: Any) -> str:
    return json.dumps({"place": place, "record": record}, ensure_ascii=False, default=str)


def _fields(record: Any) -> str:
    """What there is instead, in words."""
    if not isinstance(record, dict):
        return json.dumps(record)[:60]
    known = ", ".join(record) or "none"
    listed = next((name for name, value in record.items() if isinstance(value, list)), None)
    return f"{known}; if the records are in {listed!r}, take them out: `jq -c '.{listed}[]'`" if listed else known
