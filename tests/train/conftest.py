"""A small corpus of the bundled stories, tokenized for real."""

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.storyteller import stories as storyteller
from pipeline.tokenize import tokenizer
from pipeline.tokenize import writer as tokens
from tests.train.small import tiny


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # matrices this small are not worth two


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokens/ and tokenizer/ of 300 stories, one token a byte."""
    place = tmp_path_factory.mktemp("corpus")
    texts = [story.text for story in storyteller.stories(300, seed=5)]
    for split, chosen in (("train", texts[20:]), ("val", texts[:20])):
        (place / "clean" / split).mkdir(parents=True)
        pq.write_table(pa.table({"text": chosen}), place / "clean" / split / "part-00000.parquet")
    settings = tiny().tokenizer
    tokenizer.build(settings, place / "clean", place / "tokenizer")
    tokens.write(settings, place / "tokenizer", place / "clean", place / "tokens")
    return place


@pytest.fixture(scope="session")
def children() -> Any:
    """Makes real processes; where the system can, forked from one that has imported torch already."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.train.loop", "dvc.repo", "torch._dynamo"])
    return context
