"""Files that are either whole or absent: written aside, then renamed into place, by one process at a time."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import UserError, refusal

_PARTIAL = ".partial"
_PATIENCE = 10.0  # seconds that one writer waits for another


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Yield `path` as an empty folder to work in, and remove it at the end.

    The name is fixed so that what a killed run left there is found and removed by the next one.
    """
    with _own(path, path):
        path.mkdir(parents=True)
        yield path


@contextmanager
def written_whole(path: Path | str) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder to; rename it to `path` when the block ends well.

    The place is `.NAME.partial` in the same folder (a rename is atomic within one file system). What a killed
    run left there is removed first; after an exception nothing stays. A previous `path` is replaced at the end.
    Raises UserError where another process is writing the same path, or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _own(path, partial):
        yield partial
        if not partial.exists():
            raise FileNotFoundError(f"nothing was written to {partial}")
        _replace(path, partial)


@contextmanager
def _own(path: Path, place: Path) -> Iterator[None]:
    """Be the only writer of `path`, with nothing at `place` before and after."""
    with _alone(path):
        remove(place)
        try:
            yield
        except Exception as error:  # asked before there is room again: many a library does not say what it met
            if not isinstance(error, UserError) and (words := refusal(error)):
                raise UserError(words) from error
            raise
        finally:
            remove(place)


def _replace(path: Path, partial: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        os.replace(partial, path)
        return
    old = path.with_name(f".{path.name}.old")  # a folder cannot be renamed over a folder that holds files
    remove(old)
    os.replace(path, old)
    os.replace(partial, path)
    remove(old)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock on what is written at `path`. It lies outside of the outputs, which hold nothing but results."""
    name = hashlib.sha256(f"{Path.home()} {path.absolute()}".encode()).hexdigest()[:32]
    lock = FileLock(Path(tempfile.gettempdir()) / f"moe-{name}.lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise UserError(f"another process is writing {path}; wait until it ends, then run the command again") from None
    try:
        yield
    finally:
        lock.release()
