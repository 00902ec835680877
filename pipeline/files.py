"""Files that are either whole or absent: written aside, then renamed into place."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = ".partial"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield `path` as an empty folder to work in, and remove it at the end.

    The name is fixed so that what a killed run left there is found and removed by the next one.
    """
    _remove(path)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        _remove(path)


@contextmanager
def written_whole(path: Path | str) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder to; rename it to `path` when the block ends well.

    The place is `.NAME.partial` in the same folder (a rename is atomic within one file system). What a killed
    run left there is removed first; after an exception nothing stays. A previous `path` is replaced at the end.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
        yield partial
        if not partial.exists():
            raise FileNotFoundError(f"nothing was written to {partial}")
    except BaseException:
        _remove(partial)
        raise
    if path.is_dir() and not path.is_symlink():  # a folder cannot be renamed over a folder that holds files
        old = path.with_name(f".{path.name}.old")
        _remove(old)
        os.replace(path, old)
        os.replace(partial, path)
        _remove(old)
    else:
        os.replace(partial, path)
