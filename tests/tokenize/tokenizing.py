"""What the tests of tokenizers share: parameters, texts, clean sets."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline import params

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


def settings_for(kind: str, **changes: Any) -> params.Tokenizer:
    preset = yaml.safe_load((ROOT / "configs/tokenizer/bpe.yaml").read_text(encoding="utf-8"))
    return params.Tokenizer(**{**preset, "kind": kind, "vocab_size": 400 if kind == "train" else None, **changes})


def stories(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(5, 60))).capitalize() + "." for _ in range(count)]


def clean_set(folder: Path, train: list[str], val: list[str] | None = None) -> Path:
    for split, documents in (("train", train), ("val", val or ["A fox ran home."])):
        (folder / split).mkdir(parents=True)
        table = pa.table({"text": pa.array(documents, pa.string()), "source": ["test"] * len(documents)})
        pq.write_table(table, folder / split / "part-00000.parquet", row_group_size=50)
    return folder
