"""Content hashes of files and folders: the MD5 that DVC writes to dvc.lock, and a SHA-256 of names and bytes.

tree_md5("data/clean")      # what `outs: - path: data/clean  md5: …` of dvc.lock says
content_hash("data/clean")  # the same on every machine; W&B artifact versions are called by its first characters
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path


def file_md5(path: Path | str) -> str:
    """MD5 of a file's bytes as 32 hexadecimal digits, as DVC 3 writes it for a file. Raises FileNotFoundError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits. Raises FileNotFoundError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_md5(path: Path | str) -> str:
    """What DVC writes to dvc.lock for the output `path`: a file's MD5, or for a folder that of its list and `.dir`.

    Every file below a folder counts; a .dvcignore is not read. Raises FileNotFoundError.
    """
    path = Path(path)
    if path.is_file():
        return file_md5(path)
    listed = [{"md5": md5, "relpath": name} for name, md5 in _each(path, files_below(path), file_md5)]
    as_dvc_writes_it = json.dumps(listed, sort_keys=True).encode()
    return hashlib.md5(as_dvc_writes_it, usedforsecurity=False).hexdigest() + ".dir"


def content_hash(path: Path | str, files: Iterable[Path] | None = None) -> str:
    """SHA-256 (64 hexadecimal digits) over the sorted pairs of relative path and SHA-256 of the file.

    Takes `files` below `path`, or all of them; a file alone goes by its name. Raises FileNotFoundError.
    """
    path = Path(path)
    if path.is_file():
        path, files = path.parent, [path]
    whole = hashlib.sha256()
    for name, digest in _each(path, files_below(path) if files is None else files, file_sha256):
        whole.update(f"{digest}  {name}\n".encode())
    return whole.hexdigest()


def files_below(path: Path | str) -> list[Path]:
    """All files in and below a folder, sorted. Raises FileNotFoundError where there is no such folder."""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return sorted(file for file in path.rglob("*") if file.is_file())


def _each(root: Path, files: Iterable[Path], digest: Callable[[Path], str]) -> list[tuple[str, str]]:
    """Sorted (relative path with `/`, digest of the file). Threads: hashlib lets go of the GIL."""
    names = {file.relative_to(root).as_posix(): file for file in files}
    with ThreadPoolExecutor() as pool:
        return list(zip(sorted(names), pool.map(digest, (names[name] for name in sorted(names))), strict=True))
