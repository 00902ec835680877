"""A small corpus of the bundled stories, tokenized for real, and a model that trains in milliseconds."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import params
from pipeline.corpus import storyteller, tokenizer, tokens

ROOT = Path(__file__).parents[2]


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


def tiny(model: dict[str, Any] | None = None, optimizer: dict[str, Any] | None = None, **train: Any) -> params.Params:
    """The committed parameters with a model of 2 layers of 32, bytes for tokens, and a run of 12 steps."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["tokenizer"] |= {"kind": "bytes", "vocab_size": None, "chunk_tokens": 20_000}
    raw["model"] |= {
        "block_size": 32, "n_layer": 2, "n_embd": 32, "n_head": 2, "n_query_groups": 1, "n_expert": 4,
        "moe_intermediate_size": 32, "intermediate_size": 64,
    } | (model or {})  # fmt: skip
    raw["train"] |= {
        "device": "cpu", "block_size": 32, "global_batch_size": 8, "micro_batch_size": 4, "max_tokens": None,
        "max_steps": 12, "eval_every": 0, "eval_samples": 8, "log_every": 1, "checkpoint_every": 2, "compile": "off",
    } | train  # fmt: skip
    raw["train"]["optimizer"] |= optimizer or {}
    raw["evaluate"]["stride"] = None
    return params.validate(raw)
