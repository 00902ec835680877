"""Conversations in a W&B artifact: its .jsonl, .json and .parquet files."""

from pipeline.documents.reading import JSON, PARQUET, kind_of
from pipeline.download.source import File
from pipeline.download.wandb import Artifact
from pipeline.errors import UserError


class ArtifactRecords(Artifact):
    def files(self) -> list[File]:
        folder = self.fetch()
        found = [path for path in sorted(folder.rglob("*")) if kind_of(path.name)[0] in (*JSON, *PARQUET)]
        if not found:
            names = ", ".join(file.name for file in folder.rglob("*"))
            raise UserError(f"download.artifact: no file of records in {self.wanted.artifact}, only {names}")
        return [
            self.on_disk(path, name := path.relative_to(folder).as_posix(), f"{self.wanted.artifact}/{name}", name)
            for path in found
        ]
