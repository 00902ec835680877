"""Our hashes against DVC's own."""

from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from pipeline.hashing import content_hash, file_md5, tree_md5


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.bin", "a/z", "a.bin", "a/é.txt", "a-b/empty", "deep/er/still"):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name.endswith("empty") else name.encode() * 1000 + b"\r\n")
    (tmp_path / "file.bin").write_bytes(b"\x00\r\n" * 500)
    return tmp_path / "out"


def test_md5_is_what_dvc_writes(tree: Path) -> None:
    with Repo.init(no_scm=True) as repo:
        repo.add(["out", "file.bin"])
    written = {name: yaml.safe_load(Path(f"{name}.dvc").read_text())["outs"][0]["md5"] for name in ("out", "file.bin")}
    assert written == {"out": tree_md5("out"), "file.bin": file_md5("file.bin")}
    assert tree_md5("file.bin") == file_md5("file.bin")


def test_content_hash_is_of_names_and_bytes(tree: Path) -> None:
    before = content_hash(tree)
    moved = tree.rename(tree.with_name("elsewhere"))
    assert content_hash(moved) == before
    (moved / "a/z").rename(moved / "a/y")
    renamed = content_hash(moved)
    (moved / "a/y").write_bytes(b"other")
    assert len({before, renamed, content_hash(moved)}) == 3


def test_content_hash_of_some_files_and_of_one(tree: Path) -> None:
    assert content_hash(tree, [tree / "b.bin"]) == content_hash(tree / "b.bin")
    assert content_hash(tree, [tree / "b.bin"]) != content_hash(tree)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for hashed in (tree_md5, content_hash):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            hashed(tmp_path / "nowhere")
