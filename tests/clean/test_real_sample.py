"""The first megabyte of the real TinyStories, which is no part of the project: its tests are skipped without it."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ftfy.badness import is_bad

from pipeline.clean import cleaning
from pipeline.cli.compose import compose
from pipeline.documents import shards
from pipeline.download import sources
from pipeline.hashing import tree_md5
from pipeline.params import Params, load
from pipeline.tokenize import tokenizer
from pipeline.tokenize import writer as tokens

ROOT = Path(__file__).parents[2]
FILE = ROOT.parent / "shared/data/tinystories/tinystories_sample.txt"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"the real sample is not there ({FILE})")


def asked(folder: Path, corpus: Path) -> Params:
    """The default parameters with this corpus, as `dvc exp run -S` would compose them."""
    chosen = ["download=local", f"download.path={corpus}", "clean.near_duplicates.enabled=true"]
    compose(folder / "params.yaml", ROOT / "configs", [*chosen, "tokenizer.vocab_size=500"])
    return load(folder / "params.yaml")


def cleaned(corpus: Path, folder: Path) -> dict[str, Any]:
    wanted = asked(folder, corpus)
    sources.download(wanted.download, folder / "raw")
    return cleaning.clean(wanted.clean, folder / "raw", folder / "clean", folder / "plots")


def stories(folder: Path) -> list[str]:
    return [text for table in shards.tables(folder) for text in table.column("text").to_pylist()]


def test_the_sample_falls_into_its_thousand_stories_without_mojibake(tmp_path: Path) -> None:
    report = cleaned(FILE, tmp_path)
    assert 950 <= report["documents_out"] <= 1050
    assert report["steps"]["fix_encoding"]["documents_changed"] > 50
    damaged = [text for text in stories(tmp_path / "raw") if is_bad(text)]
    assert len(damaged) > 50
    kept = stories(tmp_path / "clean/train") + stories(tmp_path / "clean/val")
    assert [text for text in kept if is_bad(text) or "â€" in text or "\ufffd" in text] == []
    assert sum(text.startswith("Once upon a time") for text in kept) > 300


def test_a_story_told_again_with_one_word_changed_is_reported_as_a_near_duplicate(tmp_path: Path) -> None:
    sample = FILE.read_text(encoding="utf-8")
    (tmp_path / "first").mkdir()
    cleaned(FILE, tmp_path / "first")
    told = max(stories(tmp_path / "first/clean/train"), key=len)
    again = f"{told.rsplit(' ', 1)[0]} indeed."
    (tmp_path / "more.txt").write_text(f"{sample.rstrip()}\n{again}\n", encoding="utf-8")
    report = cleaned(tmp_path / "more.txt", tmp_path)
    assert report["steps"]["near_duplicates"]["documents_dropped"] == 1
    assert report["dropped"]["near_duplicates"]["examples"] == [again[:300]]


def test_the_sample_in_any_file_format_gives_the_same_token_bytes(tmp_path: Path) -> None:
    sources.download(asked(tmp_path, FILE).download, tmp_path / "raw")
    texts = stories(tmp_path / "raw")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (tmp_path / "stories.txt").write_bytes(FILE.read_bytes())
    (tmp_path / "stories.jsonl").write_bytes(lines)
    (tmp_path / "stories.jsonl.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.table({"text": texts}), tmp_path / "stories.parquet")
    found = {}
    for corpus in sorted(tmp_path.glob("stories.*")):
        folder = tmp_path / f"from-{corpus.name}"
        folder.mkdir()
        cleaned(corpus, folder)
        wanted = load(folder / "params.yaml").tokenizer
        tokenizer.build(wanted, folder / "clean", folder / "tokenizer")
        tokens.write(wanted, folder / "tokenizer", folder / "clean", folder / "tokens")
        found[corpus.name] = tree_md5(folder / "tokens")
    assert len(found) == 4
    assert len(set(found.values())) == 1, found
