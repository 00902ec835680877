"""What the tests of tokenizers and token sets share: parameters, texts, clean sets, token sets."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline import params
from pipeline.tokenize import tokenizer, writer

ROOT = Path(__file__).parents[2]
END = "<|endoftext|>"
ODD = [
    "Once upon a time, in 1984, there were 12,345 foxes.",
    "  leading, trailing  \n\n\n\ttabs\r\nand lines  ",
    "iPhone手机很好。カタカナとひらがな、漢字 한국어 텍스트",
    "café cafe\u0301 नमस्ते ไทย עברית 😀👩‍👩‍👧 \u200b\ufeff\x00\x1f",
    f"a marker {END} spelt out </s> <s> <0x41> ▁▁ Ġ",
    "x" * 700,
]
WORDS = [
    "the",
    "a",
    "little",
    "fox",
    "girl",
    "saw",
    "ran",
    "to",
    "forest",
    "and",
    "said",
    "hello",
    "happy",
    "dog",
    "tree",
]
STORIES = [f"Once upon a time there were {n} foxes.\n\nFox {n * n} said: good day, 你好!\n" for n in range(400)]


def settings_for(kind: str, **changes: Any) -> params.Tokenizer:
    preset = yaml.safe_load((ROOT / "configs/tokenizer/bpe.yaml").read_text(encoding="utf-8"))
    return params.Tokenizer(**{**preset, "kind": kind, "vocab_size": 400 if kind == "train" else None, **changes})


def stories(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(5, 60))).capitalize() + "." for _ in range(count)]


def shards(folder: Path, documents: list[str], count: int = 1, rows: int = 100) -> None:
    folder.mkdir(parents=True)
    for i, cut in enumerate(np.array_split(np.arange(len(documents)), count)):
        table = pa.table({"text": pa.array([documents[j] for j in cut], pa.string()), "source": ["test"] * len(cut)})
        pq.write_table(table, folder / f"part-{i:05d}.parquet", row_group_size=rows)


def clean_set(folder: Path, train: list[str], val: list[str] | None = None) -> Path:
    shards(folder / "train", train, rows=50)
    shards(folder / "val", val or ["A fox ran home."])
    return folder


def token_set(folder: Path, train: list[str], val: list[str], kind: str = "train", **changes: Any) -> dict[str, Any]:
    """folder/clean, folder/tokenizer and folder/tokens in chunks of 1,000 tokens; the writer's report."""
    shards(folder / "clean/train", train, count=2)
    shards(folder / "clean/val", val)
    asked = settings_for(kind, chunk_tokens=1000, **changes)
    tokenizer.build(asked, folder / "clean", folder / "tokenizer")
    return writer.write(asked, folder / "tokenizer", folder / "clean", folder / "tokens", folder / "plots")
