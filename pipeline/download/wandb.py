"""Source `wandb`: a raw or clean corpus that this pipeline wrote before and mirrored as an artifact."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO

from pipeline.documents import columns
from pipeline.documents.reading import in_words
from pipeline.download.source import Document, File, Source, described
from pipeline.errors import UserError
from pipeline.files import scratch
from pipeline.params.download import Wandb


class Artifact(Source):
    def __init__(self, wanted: Wandb, folder: Path) -> None:
        super().__init__(wanted, folder)
        self.manifest = {"origin": wanted.artifact}
        self.description = f"the W&B artifact {wanted.artifact}"
        self.card = f"the W&B artifact {wanted.artifact}"
        self._fetched = ExitStack()

    def files(self) -> list[File]:
        """Parquet files; those in the folders val and train of a clean artifact are its splits."""
        folder = self.fetch()
        found = sorted(folder.rglob("*.parquet"), key=lambda file: (file.parent.name != "val", file))
        if not found:
            names = ", ".join(file.name for file in folder.rglob("*"))
            raise UserError(f"download.artifact: no Parquet file in {self.wanted.artifact}, only {names}")
        return [self._file(path, path.relative_to(folder).as_posix()) for path in found]

    def fetch(self) -> Path:
        """The folder that the artifact's files are in until the source is left."""
        from pipeline.tracking.exchange import source_artifact  # tracking watches: only this source needs it

        into = self._fetched.enter_context(scratch(self.folder / ".artifact"))
        artifact = source_artifact(self.wanted.artifact, into / "files")
        self.manifest |= {"revision": artifact.name, "content_hash": artifact.content_hash}
        return Path(artifact.path)

    def __exit__(self, *_: object) -> None:
        self._fetched.close()

    def _file(self, path: Path, name: str) -> File:
        split = path.parent.name if path.parent.name in ("train", "val") else None
        return File(name, split, described(path, name), partial(_documents, path, name, split))


def _documents(path: Path, name: str, split: str | None) -> Iterator[Document]:
    """Documents that bring their source, and their split in a raw artifact."""
    with in_words(name), path.open("rb") as stream:
        yield from _labelled(stream, split)


def _labelled(stream: IO[bytes], split: str | None) -> Iterator[Document]:
    names = columns.names(stream)
    if not {"text", "source"} <= set(names):
        raise UserError(f"not a corpus of this pipeline; its columns are {', '.join(names)}")
    wanted = [name for name in ("text", "source", "split") if name in names]
    for row, record in columns.records(stream, wanted):
        text, source = record["text"], record["source"]
        if text is None or source is None:
            raise UserError(f"row {row} has no {'text' if text is None else 'source'}")
        yield Document(text, source, record.get("split") or split)
