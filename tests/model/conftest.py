"""A small tokenizer, as the tokenize stage writes it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import params
from pipeline.storyteller import stories as storyteller
from pipeline.tokenize import tokenizer
from tests.model.small import ROOT


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clean = tmp_path_factory.mktemp("clean")
    (clean / "train").mkdir()
    texts = [story.text for story in storyteller.stories(60, 0)]
    pq.write_table(pa.table({"text": texts}), clean / "train" / "part-00000.parquet")
    wanted = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["tokenizer"] | {"vocab_size": 300}
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.build(params.Tokenizer(**wanted), clean, folder)
    return folder
