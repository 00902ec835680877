"""Source `local`: files of your own: one, those of a folder, or those that a glob names."""

import glob
from collections.abc import Iterator
from pathlib import Path

from pipeline import console
from pipeline.documents.reading import ALLOWED, kind_of, not_data
from pipeline.download.source import File, Source, label
from pipeline.errors import UserError
from pipeline.params.download import Local


class LocalFiles(Source):
    def __init__(self, wanted: Local, folder: Path) -> None:
        super().__init__(wanted, folder)
        self.manifest = {"origin": wanted.path}
        self.description = f"own files: {wanted.path}"
        self.card = "files of the author"

    def files(self) -> list[File]:
        return list(self._local(Path(self.wanted.path), self.wanted.pattern))

    def _local(self, path: Path, pattern: str) -> Iterator[File]:
        if path.is_file():
            if not kind_of(path.name)[0]:
                raise UserError(f"{path}: unknown type of file; {ALLOWED}")
            found, root = [path], path.parent
        elif path.is_dir():
            found, root = sorted(file for file in path.glob(pattern) if file.is_file()), path
        else:
            found, root = sorted(Path(file) for file in glob.glob(str(path), recursive=True)), path.parent
            if not found:
                raise UserError(f"download.path = {str(path)!r}: no such file or folder")
        if not path.is_file():
            left_out = {file.name: why for file in found if (why := not_data(file.name))}
            found = [file for file in found if file.name not in left_out]
            for why, names in _grouped(left_out).items():
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                console.warn(f"{path}: left out: {', '.join(names[:5])}{more}: {why}")
        if not found:
            raise UserError(f"{path}: no file of a known type matches download.pattern = {pattern!r}; {ALLOWED}")
        for file in found:
            name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
            yield self.on_disk(file, name, file.as_posix(), label(name, root.name))


def _grouped(reasons: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, why in reasons.items():
        groups.setdefault(why, []).append(name)
    return groups
