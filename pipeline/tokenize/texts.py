"""The documents of data/clean as they are tokenized: read some at a time, long ones in pieces.

for texts in batches(Path("data/clean/train")): encode(tokenizer, texts)
for piece, last in pieces(text): ...
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Encoding, Tokenizer

from pipeline.errors import UserError

PIECE_CHARS = 200_000  # a longer document is encoded in pieces
_BATCH_ROWS = 1024


def batches(split: Path) -> Iterator[list[str]]:
    """The documents of data/clean/train or data/clean/val, in the order of files and rows, some at a time.

    Raises UserError, naming the file, for a folder without shards, a damaged shard, a missing column, a null.
    """
    shards = sorted(split.glob("*.parquet"))
    if not shards:
        raise UserError(f"{split} holds no documents (*.parquet); run: dvc repro clean")
    for shard in shards:
        row = 0
        try:
            with pq.ParquetFile(shard) as file:
                if "text" not in file.schema_arrow.names:
                    raise UserError(f"{shard} has no column text; it has: {', '.join(file.schema_arrow.names)}")
                if (kind := file.schema_arrow.field("text").type) not in (pa.string(), pa.large_string()):
                    raise UserError(f"{shard}: column text is {kind}, not string; run: dvc repro clean")
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=["text"]):
                    column = batch.column(0)
                    if column.null_count:
                        raise UserError(f"{shard} has no text in row {row + column.is_valid().index(False).as_py()}")
                    yield column.to_pylist()
                    row += len(column)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{shard} is damaged after row {row} ({error}); run: dvc repro clean") from None


def count(split: Path) -> int:
    """How many documents data/clean/train or data/clean/val holds; 0 where none can be counted (see `batches`)."""
    try:
        return sum(pq.read_metadata(shard).num_rows for shard in split.glob("*.parquet"))
    except (pa.ArrowException, OSError):
        return 0


def pieces(document: str, before_space: bool = False) -> Iterator[tuple[str, bool]]:
    """The pieces of a long document, each with whether it is the last: encoding takes a hundred times their memory.

    Cut after a line, else before a space, else anywhere. Words do not cross the end of a line, so that cut leaves the
    tokens as they are; another may cost a token. before_space: cut before white space only (see `further`).
    """
    start = 0
    while len(document) - start > PIECE_CHARS:
        stop = start + PIECE_CHARS
        cut = start if before_space else document.rfind("\n", start + 1, stop)
        while cut > start and document[cut + 1].isspace():
            cut = document.rfind("\n", start + 1, cut)
        if cut > start:
            cut += 1
        else:
            cut = max(document.rfind(sign, start + 1, stop) for sign in (" \n" if before_space else " "))
        while before_space and cut > start and document[cut - 1].isspace():
            cut -= 1
        cut = cut if cut > start else stop
        yield document[start:cut], False
        start = cut
    yield document[start:], True


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
    """Encode on all cores, letting go of the interpreter. Raises UserError for a character that no token can write."""
    try:
        return tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(
            f"the tokenizer cannot write the corpus ({error}); take one that has bytes or an unknown token"
        ) from None


def further(tokenizer: Tokenizer) -> Tokenizer | None:
    """The tokenizer for a document's second piece and the next ones; None where it is the same.

    SentencePiece and its like put a space before a text and strip it. Within a document that would add tokens, so the
    further pieces are encoded without, and cut before a space, which then stands for itself.
    """
    whole = json.loads(tokenizer.to_str())
    steps = {name: _amid_text(whole[name]) for name in ("normalizer", "pre_tokenizer")}
    if all(steps[name] == whole[name] for name in steps):
        return None
    changed = Tokenizer.from_str(json.dumps(whole | steps))
    changed.encode_special_tokens = tokenizer.encode_special_tokens
    return changed


def _amid_text(step: Any) -> Any:
    """A step of tokenizer.json without what it does at the beginning of a text."""
    if step is None or step["type"] == "Prepend":
        return None
    for key in ("normalizers", "pretokenizers"):
        if key in step:
            step = {**step, key: [part for part in map(_amid_text, step[key]) if part is not None]}
    changes = {"strip_left": False, "prepend_scheme": "never", "add_prefix_space": False}
    return step | {key: value for key, value in changes.items() if key in step}
