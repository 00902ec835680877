"""What a source of documents is: the files it gives, and what the manifest, the report and the model card say of it.

To add a source, write a class like those beside this file and list it in `sources.SOURCES` (CONTRIBUTING.md).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pipeline.documents.reading import How, Opener, Reader, kind_of, settle


@dataclass
class Document:
    text: str
    source: str  # what it is counted under
    split: str | None = None
    bits: float = 0.0  # of chance, where the source knows it


@dataclass
class File:
    """One file of a source: its split if it has one, what the manifest says of it, and how its documents are read."""

    name: str
    split: str | None
    entry: dict[str, Any]
    documents: Callable[[], Iterator[Document]]


class Source:
    """Where documents come from. After `files`, the attributes are set; `folder` (data/) has room for what is fetched.

    manifest: origin, licence, revision and the like. description: a short phrase. card: a Markdown phrase with the
    licence. dataset: the id of a data set on the Hugging Face Hub.
    """

    manifest: dict[str, Any]
    description: str
    card: str
    dataset: str | None = None

    def __init__(self, wanted: Any, folder: Path) -> None:
        self.wanted, self.folder = wanted, folder
        self.guesses: Counter[str] = Counter()  # what `split: auto` decided, in words
        self.dropped: Counter[str] = Counter()  # documents that hold no text, by reason
        self._opened: list[tuple[str, Opener]] = []
        self.left_out: dict[str, str] = {}  # why, by the name of a file that holds no documents

    def files(self) -> list[File]:
        """The files, those of the split val first. Raises UserError for a source that is not there."""
        raise NotImplementedError

    @cached_property
    def _how(self) -> How:
        """How all the files are read: for `split: auto`, they are looked at together."""
        how = How(self.wanted.text_column, self.wanted.split, self.wanted.separator)
        return settle(self._opened, how, self.guesses)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Remove what was fetched; kind: what ended the work before the documents were safe."""

    def on_disk(self, path: Path, name: str, origin: str, source: str) -> File:
        return self.file(name, lambda: path.open("rb"), described(path, origin), source)

    def file(
        self,
        name: str,
        open: Opener,
        entry: dict[str, Any],
        source: str,
        split: str | None = None,
    ) -> File:
        """A file in one of the formats that `Reader` knows; `source` is what its documents are counted under."""

        def documents() -> Iterator[Document]:
            with open() as stream:
                for text in Reader(name, self._how, self.guesses, self.dropped).documents(stream):
                    yield Document(text, source, split)

        self._opened.append((name, open))
        return File(name, split, entry, documents)


def label(name: str, otherwise: str = "local") -> str:
    """What the documents of a file are counted under: its name without type and shard number, in every format."""
    path = PurePosixPath(name)
    stem = path.name
    while kind_of(stem)[0] or PurePosixPath(stem).suffix.lower() in (".gz", ".zst", ".tgz"):
        stem = PurePosixPath(stem).stem
    stem = re.sub(r"([-_.]?\d+)?([-_.]of[-_.]\d+)?$", "", stem)
    return (path.parent / stem).as_posix() if stem else (path.parent.as_posix().removeprefix(".") or otherwise)


def described(path: Path, origin: str) -> dict[str, Any]:
    """What the manifest says of a file on disk."""
    return {"origin": origin, "bytes": path.stat().st_size, "sha256": sha256(path)}


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def as_regex(glob: str, folders: bool) -> str:
    """A glob as a regular expression: `**` goes through folders, `*`, `?` and `[ab]` stay within a name.

    folders: a folder that matches stands for all that is in it.
    """
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]/]+\])", glob.strip("/"))
    regex = "".join(signs.get(p) or (p.replace("[!", "[^") if p.startswith("[") else re.escape(p)) for p in parts)
    return regex + ("(?:/.*)?" if folders else "")
