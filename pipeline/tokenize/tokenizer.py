"""The tokenizer: trained on the clean corpus, pretrained, or plain bytes or characters; in the end one folder.

    report = build(params.tokenizer, Path("data/clean"), Path("data/tokenizer"))
    ids = load(Path("data/tokenizer")).encode("Once upon a time").ids

The folder holds tokenizer.json and tokenizer_config.json; `transformers.AutoTokenizer` and `litgpt.Tokenizer` load it
and give the same ids. Text never yields a special token: "<|endoftext|>" in a document is spelt out in ordinary tokens.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline import console, params
from pipeline.errors import UserError
from pipeline.tokenize import pretrained
from pipeline.tokens.tokenizer import eos_id, load, vocab_size

PIECE_CHARS = 200_000  # a longer document is encoded in pieces
_BATCH_ROWS = 1024
_SAMPLE_DOCUMENTS = 200  # looked at for the round trip in the report
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]  # the names that `byte_fallback` looks for

# Scripts written without spaces between words; a run of them is a word of its own, never glued to Latin letters.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}"


def build(params: params.Tokenizer, clean: Path, into: Path) -> dict[str, Any]:
    """Make the tokenizer that `params` ask for in the folder `into`; return what is worth reporting.

    The same text gives the same bytes, whatever the number of threads: merges are ranked by count, then by ids.
    Raises UserError for a corpus without documents or a tokenizer that cannot be had.
    """
    train = clean / "train"
    origin: dict[str, Any] = {}
    eos_token = params.eos_token
    if params.kind == "pretrained":
        tokenizer, eos_token, origin = pretrained.load(params)
    elif params.kind == "train":
        tokenizer, origin = _train(params, train)
    elif params.kind == "bytes":
        tokenizer = _bytes(params)
    else:
        tokenizer = _characters(params, train)
    _save(tokenizer, eos_token, into)
    return {
        "kind": params.kind,
        "vocab_size": vocab_size(into),
        "eos_token": eos_token,
        "eos_id": eos_id(into),
        **origin,
        "round_trip": _round_trip(load(into), train),
    }


def texts(split: Path) -> Iterator[list[str]]:
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
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=["text"]):
                    column = batch.column(0)
                    if column.null_count:
                        raise UserError(f"{shard} has no text in row {row + column.is_valid().index(False).as_py()}")
                    yield column.to_pylist()
                    row += len(column)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{shard} is damaged after row {row} ({error}); run: dvc repro clean") from None


def count(split: Path) -> int:
    """How many documents data/clean/train or data/clean/val holds; 0 where none can be counted (see `texts`)."""
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


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The token of what the vocabulary cannot spell, where there is one."""
    model = json.loads(tokenizer.to_str())["model"]
    found = model.get("unk_id")  # Unigram's
    return found if found is not None else tokenizer.token_to_id(model.get("unk_token") or "")


def fallback_ids(tokenizer: Tokenizer) -> list[int]:
    """Tokens of one byte that a character outside the vocabulary is spelt with; ASCII in byte-level BPE is none."""
    names = _BYTE_TOKENS
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        names = _byte_letters()[0x80:]
    ids = (tokenizer.token_to_id(name) for name in names)
    return [token_id for token_id in ids if token_id is not None]


# --- kinds ------------------------------------------------------------------------------------------------------------


def pattern(split_digits: bool) -> str:
    """What becomes one word before merging; merges never cross words.

    In order: English contractions; runs of Han, Hiragana, Katakana; letters with their marks, with one space or
    sign before them; digits, one by one or up to three; other signs with the line breaks after them; white space.
    """
    letters = rf"(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}])+"
    return "|".join(
        [
            r"'(?:[sdmtSDMT]|ll|LL|ve|VE|re|RE)(?![\p{L}\p{M}])",
            rf"[{_UNSPACED}]+",
            rf"[^\r\n\p{{L}}\p{{M}}\p{{N}}]?{letters}",
            r"\p{N}" if split_digits else r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        ]
    )


def _train(params: params.Tokenizer, train: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Byte-level BPE (Sennrich et al. 2016, over bytes as in GPT-2): every byte has a token, nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern(params.split_digits)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=params.vocab_size,
        min_frequency=params.min_frequency,
        special_tokens=[params.eos_token, *params.special_tokens],
        initial_alphabet=sorted(_byte_letters()),
        show_progress=False,
    )
    seen = {"documents": 0, "bytes": 0}
    tokenizer.train_from_iterator(_sampled(train, params.train_bytes, seen), trainer)
    size = tokenizer.get_vocab_size()
    if params.vocab_size is not None and size < params.vocab_size:
        console.warn(
            f"tokenizer.vocab_size: {params.vocab_size:,} asked, {size:,} made: {console.size(seen['bytes'])} of text "
            f"hold no further pair seen {params.min_frequency} times; the model gets {size:,} tokens"
        )
    return tokenizer, {"vocab_size_asked": params.vocab_size, "trained_on": seen}


def _sampled(train: Path, most: int | None, seen: dict[str, int]) -> Iterator[list[str]]:
    """Documents to learn from: all, or a share chosen by each text's checksum, so that no source comes first."""
    share = 1.0
    if most is not None:
        total = sum(len(text.encode()) for batch in texts(train) for text in batch)
        share = most / max(total, 1)
    with console.progress("training the tokenizer", count(train), "documents") as advance:
        for batch in texts(train):
            encoded = [text.encode() for text in batch]
            kept = [i for i, text in enumerate(encoded) if share >= 1 or zlib.crc32(text) < share * 2**32]
            size = sum(len(encoded[i]) for i in kept)
            seen["documents"] += len(kept)
            seen["bytes"] += size
            advance(len(batch))
            yield [piece for i in kept for piece, _ in pieces(batch[i])]
    if not seen["documents"]:
        raise UserError(
            f"{train} holds no document to train a tokenizer on; see reports/clean.json for what was dropped"
        )


def _bytes(params: params.Tokenizer) -> Tokenizer:
    """Token i is byte i; the special tokens follow."""
    tokenizer = Tokenizer(models.BPE({letter: byte for byte, letter in enumerate(_byte_letters())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([params.eos_token, *params.special_tokens])
    return tokenizer


def _characters(params: params.Tokenizer, train: Path) -> Tokenizer:
    """Characters of the training text by code point, then the special tokens, then 256 byte tokens.

    A character that training did not see falls to its UTF-8 bytes, so nothing is lost; `fallback_share` in the
    report says how often. (Published character-level results drop or never meet such characters.)
    """
    counts = np.zeros(0x110000, dtype=np.int64)
    for batch in texts(train):
        joined = "".join(batch)
        for start in range(0, len(joined), PIECE_CHARS):
            points = np.frombuffer(joined[start : start + PIECE_CHARS].encode("utf-32-le"), dtype="<u4")
            counts += np.bincount(points, minlength=len(counts))
    characters = [chr(point) for point in np.flatnonzero(counts)]
    special = [params.eos_token, *params.special_tokens]
    names = [*characters, *special, *_BYTE_TOKENS]
    model = models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    return tokenizer


def _byte_letters() -> list[str]:
    """The letter that byte-level BPE writes for a byte: itself where it shows in Latin-1, else one from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(0x100 + hidden.index(byte)) for byte in range(256)]


# --- the folder -------------------------------------------------------------------------------------------------------


def _save(tokenizer: Tokenizer, eos_token: str, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(into / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # any tokenizer.json as it stands, for AutoTokenizer
        "eos_token": eos_token,
        "add_bos_token": False,  # asked for by litgpt, which guesses otherwise
        "clean_up_tokenization_spaces": False,  # or decoding would not give the text back
        "model_max_length": 10**30,  # transformers' own "no limit"
    }
    (into / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _round_trip(tokenizer: Tokenizer, train: Path) -> float:
    """Share of some training documents that decode to just what was encoded; warns below 1."""
    sample = [text[:PIECE_CHARS] for text in next(texts(train), [])[:_SAMPLE_DOCUMENTS]]
    if not sample:
        return 1.0
    same = sum(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text for text in sample)
    if same < len(sample):
        console.warn(
            f"the tokenizer loses text: {len(sample) - same} of {len(sample)} documents decode to another text"
        )
    return same / len(sample)
