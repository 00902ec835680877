"""The stages download and clean as commands: a bad corpus ends with exit code 2, words, and nothing half-written."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli.compose import compose
from stages import clean, download

ROOT = Path(__file__).parents[2]
STORY = "Once upon a time there was a red fox who lived in a quiet wood and liked to count the stars at night.\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """An empty project with these parameters, and the process in it."""

    def make(*overrides: str) -> Path:
        compose(tmp_path / "params.yaml", ROOT / "configs", list(overrides))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("WANDB_MODE", "disabled")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        return tmp_path

    return make


def refused(stage: typer.Typer) -> str:
    """What a stage that fails says."""
    result = CliRunner().invoke(stage, [])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b"\n \n", "no document in empty.txt"),
        ("latin.txt", b"A caf\xe9.\n", "latin.txt: line 1, byte 5: not UTF-8"),
        ("cut.txt.gz", gzip.compress(STORY.encode() * 99)[:-9], "cut.txt.gz: damaged or cut short"),
        ("cut.parquet", b"PAR1 nothing more", "cut.parquet: damaged or cut short"),
        ("column.jsonl", b'{"body": "a"}\n', "column.jsonl: line 1: no field 'text'; there is body"),
        ("absent.txt", None, "download.path = 'absent.txt': no such file or folder"),
    ],
)
def test_a_bad_corpus_is_refused_by_download(
    project: Callable[..., Path], name: str, data: bytes | None, message: str
) -> None:
    folder = project("download=local", f"download.path={name}", f"download.watch={name}")
    if data is not None:
        (folder / name).write_bytes(data)
    said = refused(download.app)
    assert f"error: download: {message}" in said or f"error: download: download: {message}" in said
    assert not (folder / "reports").exists()
    assert not (folder / "data").exists() or list((folder / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([STORY], "one document is left, and val needs one of its own: data/raw has 1 (dropped: none)"),
        ([STORY] * 3, "data/raw has 3 (dropped: 2 exact duplicates)"),
        (["Too short."] * 3, "no document is left: data/raw has 3 (dropped: 3 too short)"),
        (None, "no part-*.parquet in data/raw; run the stage download first"),
    ],
)
def test_a_corpus_that_leaves_nothing_is_refused_by_clean(
    project: Callable[..., Path], documents: list[str] | None, message: str
) -> None:
    folder = project()
    if documents is not None:
        count = len(documents)
        (folder / "data/raw").mkdir(parents=True)
        columns = {"row": range(count), "text": documents, "source": ["book"] * count}
        table = pa.table({**columns, "split": pa.array([None] * count, pa.string())})
        pq.write_table(table, folder / "data/raw/part-00000.parquet")
    assert message in refused(clean.app)
    assert not (folder / "reports").exists()
    assert not (folder / "data").exists() or [path.name for path in (folder / "data").iterdir()] == ["raw"]


def test_parameters_that_lead_nowhere_are_refused_before_anything_is_fetched(project: Callable[..., Path]) -> None:
    folder = project("download=url", "download.urls=[example.org/a.txt]")
    said = refused(download.app)
    assert "download.urls: 'example.org/a.txt'; allowed: addresses that begin with http:// or https://" in said
    assert not (folder / "data").exists()
