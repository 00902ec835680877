"""Source `local`: files of your own: one, those of a folder, or those that a glob names (docs/own-data.md)."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pipeline.documents.reading import ALLOWED, kind_of, not_data, shown, warn_left_out
from pipeline.download.source import File, Source, as_regex, label
from pipeline.errors import UserError
from pipeline.params import watch
from pipeline.params.download import Local


class LocalFiles(Source):
    def __init__(self, wanted: Local, folder: Path) -> None:
        super().__init__(wanted, folder)
        self.manifest = {"origin": wanted.path}
        self.description = f"own files: {wanted.path}"
        self.card = "files of the author"

    def files(self) -> list[File]:
        path = Path(os.path.expanduser(self.wanted.path))
        root = watch.fixed(self.wanted.path)
        if not root.exists() or not (path.exists() or watch.is_glob(self.wanted.path)):
            raise UserError(f"download.path = {self.wanted.path!r}: no such file or folder{_quoting(self.wanted.path)}")
        refuse_what_git_would_take(self.wanted.path, root)
        if root.is_file():
            if not kind_of(root.name)[0]:
                raise UserError(f"{root}: unknown type of file; {ALLOWED}")
            return [self._file(root, root.name)]
        glob = self.wanted.pattern if root == path else path.relative_to(root).as_posix()
        found, seen = [], set()
        for file in _walk(root):
            name = file.relative_to(root).as_posix()
            if not re.fullmatch(as_regex(glob, folders=root != path), name):
                continue
            why = not_data(name) or ("" if file.is_file() else "no file, or a link to nothing")
            if not why and os.path.realpath(file) in seen:
                why = "a link to a file that is read already"
            if why:
                self.left_out[name] = why
            else:
                found.append(self._file(file, name))
                seen.add(os.path.realpath(file))
        warn_left_out(shown(str(path)), self.left_out)
        if not found:
            key = "pattern" if root == path else "path"
            raise UserError(f"{root}: no file of a known type matches download.{key} = {glob!r}; {ALLOWED}")
        return found

    def _file(self, path: Path, name: str) -> File:
        return self.on_disk(path, shown(name), shown(path.as_posix()), shown(label(name, path.parent.name)))


def _walk(root: Path) -> Iterator[Path]:
    """Files and links in and below a folder, sorted; folders that are hidden come as themselves.

    Raises UserError for a link to a folder: DVC does not look behind it, so that an edit there would go unnoticed.
    """
    for entry in sorted(root.iterdir()):
        if not entry.is_dir() or entry.name.startswith("."):
            yield entry
        elif entry.is_symlink():
            raise UserError(
                f"{shown(str(entry))} is a link to a folder. DVC does not look behind it, so an edit there would go "
                f"unnoticed: move the folder here, or name it itself (download.path = {os.path.realpath(entry)})"
            )
        else:
            yield from _walk(entry)


def refuse_what_git_would_take(path: str, place: Path) -> None:
    """Raise UserError for files that `dvc exp run` would commit to Git, as it does with all that a stage depends on."""
    command = ["git", "ls-files", "--others", "--exclude-standard", "-z", "--", str(place)]
    try:
        listed = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return  # no Git, no commits
    names = [name for name in listed.stdout.split(b"\0") if name and not name.endswith((b".dvc", b".gitignore"))]
    if names:
        files = f"{len(names)} files" if len(names) > 1 else shown(os.fsdecode(names[0]))
        raise UserError(
            f"download.path = {path!r}: `dvc exp run` would commit {files} to Git. Move it to data/own/, which Git "
            f"ignores, or let DVC keep it: `uv run dvc add {place}`, then `git add` what that names (docs/own-data.md)"
        )


def _quoting(path: str) -> str:
    """What to do where the command line has read a name as a number."""
    odd = re.fullmatch(r"[\d_.eE+-]+|true|false|null|None", path)
    return f"; a name like a number needs quotes: -S 'download.path=\"{path}\"'" if odd else ""
