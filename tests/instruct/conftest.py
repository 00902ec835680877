"""A checkpoint folder of random weights with a small BPE tokenizer, and its context of 64 tokens."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import params
from pipeline.model import build, checkpoint_folder
from pipeline.storyteller.instructions import instructions
from pipeline.tokenize import tokenizer
from pipeline.tokens import tokenizer as vocabulary
from tests.model.small import tiny
from tests.train.small import tiny as settings


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkpoint")
    texts = [turn["content"] for made in instructions(300, seed=2) for turn in made.messages]
    for split in ("train", "val"):
        (place / "clean" / split).mkdir(parents=True)
        pq.write_table(pa.table({"text": texts}), place / "clean" / split / "part-00000.parquet")
    raw = settings().tokenizer.model_dump() | {"kind": "train", "vocab_size": 400}
    tokenizer.build(params.Tokenizer(**raw), place / "clean", place / "tokenizer")
    model = build.build(tiny(block_size=64), vocabulary.vocab_size(place / "tokenizer"), seed=0)
    checkpoint_folder.save(model, place / "litgpt", place / "tokenizer")
    return place / "litgpt"
