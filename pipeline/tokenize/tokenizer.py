"""The tokenizer: trained on the clean corpus, pretrained, or plain bytes or characters; in the end one folder.

    report = build(params.tokenizer, Path("data/clean"), Path("data/tokenizer"))

The folder holds tokenizer.json and tokenizer_config.json, for pipeline/tokens/tokenizer.py, `litgpt.Tokenizer` and
`transformers.AutoTokenizer`. They give a text the same ids, but for special tokens that it mentions: "<|endoftext|>" in
a document is spelt out here, so that text never yields it; transformers does the same with split_special_tokens=True.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline import console, params
from pipeline.errors import UserError
from pipeline.tokenize import pretrained, texts
from pipeline.tokens.tokenizer import load, special_ids, vocab_size

_SAMPLE_DOCUMENTS = 200  # looked at for the round trip in the report
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]  # the names that `byte_fallback` looks for
_NEVER = 0xFF  # a byte that UTF-8 never has, so no text needs its token

# Scripts written without spaces between words; a run of them is a word of its own, never glued to Latin letters.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}"


def build(params: params.Tokenizer, clean: Path, into: Path) -> dict[str, Any]:
    """Make the tokenizer that `params` ask for in the folder `into`; return what is worth reporting.

    The same text gives the same bytes, whatever the number of threads: merges are ranked by count, then by ids.
    Raises UserError for a corpus without documents, or a tokenizer that is not available or damaged.
    """
    tokenizer, facts = _KINDS[params.kind](params, clean / "train")
    names = {kind: facts.pop(kind, getattr(params, kind)) for kind in ("eos_token", "pad_token")}
    if names["pad_token"]:
        tokenizer = _with_pad(tokenizer, names["pad_token"])
    tokenizer.encode_special_tokens = True
    for name, token in names.items():
        if token and _yields(tokenizer, token):
            raise UserError(f"tokenizer.{name} = {token!r}: text yields this token; name one that no text has")
    _save(tokenizer, names["eos_token"], names["pad_token"], into)
    ids = special_ids(into)
    found = {"kind": params.kind, "vocab_size": vocab_size(into), **names}
    found |= {"eos_id": ids["eos_token_id"], "pad_id": ids["pad_token_id"], **facts}
    return found | _round_trip(load(into), clean / "train")


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
    words = pre_tokenizers.Split(Regex(pattern(params.split_digits)), "isolated")
    tokenizer = _byte_level(models.BPE(), words)
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
        console.say(
            f"tokenize: a vocabulary of {size:,}; {console.size(seen['bytes'])} of text hold no further pair seen "
            f"{params.min_frequency} times, though tokenizer.vocab_size allows {params.vocab_size:,}"
        )
    return tokenizer, {"vocab_size_asked": params.vocab_size, "trained_on": seen}


def _sampled(train: Path, most: int | None, seen: dict[str, int]) -> Iterator[list[str]]:
    """Documents to learn from: all, or a share chosen by each text's checksum, so that no source comes first."""
    share = 1.0
    if most is not None:
        total = sum(len(text.encode()) for batch in texts.batches(train) for text in batch)
        share = most / max(total, 1)
    with console.progress("training the tokenizer", texts.count(train), "documents") as advance:
        for batch in texts.batches(train):
            encoded = [text.encode() for text in batch]
            kept = [i for i, text in enumerate(encoded) if share >= 1 or zlib.crc32(text) < share * 2**32]
            seen["documents"] += len(kept)
            seen["bytes"] += sum(len(encoded[i]) for i in kept)
            advance(len(batch))
            yield [piece for i in kept for piece, _ in texts.pieces(batch[i])]
    if not seen["documents"]:
        raise UserError(
            f"{train} holds no document to train a tokenizer on; see reports/clean.json for what was dropped"
        )


def _bytes(params: params.Tokenizer, _: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Token i is byte i; the special tokens follow."""
    tokenizer = _byte_level(models.BPE({letter: byte for byte, letter in enumerate(_byte_letters())}, []))
    tokenizer.add_special_tokens([params.eos_token, *params.special_tokens])
    return tokenizer, {}


def _characters(params: params.Tokenizer, train: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Characters of the training text by code point, then the special tokens, then 256 byte tokens.

    A character that training did not see falls to its UTF-8 bytes, so nothing is lost; `fallback_share` in the
    report says how often. (Published character-level results drop or never meet such characters.)
    """
    counts = np.zeros(0x110000, dtype=np.int64)
    for batch in texts.batches(train):
        joined = "".join(batch)
        for start in range(0, len(joined), texts.PIECE_CHARS):
            points = np.frombuffer(joined[start : start + texts.PIECE_CHARS].encode("utf-32-le"), dtype="<u4")
            counts += np.bincount(points, minlength=len(counts))
    special = [params.eos_token, *params.special_tokens]
    names = [*map(chr, np.flatnonzero(counts)), *special, *_BYTE_TOKENS]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    return tokenizer, {}


# Each makes a tokenizer and says what the report has of it; eos_token and pad_token where they are not the params'.
_KINDS: dict[str, Callable[[params.Tokenizer, Path], tuple[Tokenizer, dict[str, Any]]]] = {
    "train": _train,
    "pretrained": lambda params, _: pretrained.load(params),
    "bytes": _bytes,
    "characters": _characters,
}


def _byte_level(model: models.BPE, *before: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_letters() -> list[str]:
    """The letter that byte-level BPE writes for a byte: itself where it shows in Latin-1, else one from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(0x100 + hidden.index(byte)) for byte in range(256)]


def _byte_names(tokenizer: Tokenizer) -> list[str]:
    """What the tokens of the 256 bytes are called, if the tokenizer has them."""
    return _byte_letters() if isinstance(tokenizer.decoder, decoders.ByteLevel) else _BYTE_TOKENS


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The token of what the vocabulary cannot spell, where there is one."""
    model = json.loads(tokenizer.to_str())["model"]
    found = model.get("unk_id")  # Unigram's
    return found if found is not None else tokenizer.token_to_id(model.get("unk_token") or "")


def fallback_ids(tokenizer: Tokenizer) -> list[int]:
    """Tokens of one byte that a character outside the vocabulary is spelt with; ASCII in byte-level BPE is none."""
    names = _byte_names(tokenizer)
    ids = (tokenizer.token_to_id(name) for name in names[0 if names is _BYTE_TOKENS else 0x80 :])
    return [token_id for token_id in ids if token_id is not None]


# --- the folder -------------------------------------------------------------------------------------------------------


def _with_pad(tokenizer: Tokenizer, pad_token: str) -> Tokenizer:
    """The tokenizer with a token to fill batches with, of its own: programs that train leave it out of the loss.

    A token that is not there yet takes the id of the byte 0xFF, which no text has, so that the vocabulary does not grow
    and every text keeps its ids; only a vocabulary without that byte gets a new id.
    """
    if tokenizer.token_to_id(pad_token) is None:
        whole = json.loads(tokenizer.to_str())
        model, names = whole["model"], _byte_names(tokenizer)
        never, complete = names[_NEVER], names is not _BYTE_TOKENS or model.get("byte_fallback")
        if complete and never in model["vocab"] and not any(never in pair for pair in model.get("merges", [])):
            model["vocab"] = {pad_token if token == never else token: i for token, i in model["vocab"].items()}
            tokenizer = Tokenizer.from_str(json.dumps(whole))
        else:
            console.say(f"the vocabulary grows by tokenizer.pad_token = {pad_token!r}; null leaves it out")
    tokenizer.add_special_tokens([pad_token])
    return tokenizer


def _yields(tokenizer: Tokenizer, token: str) -> bool:
    """Whether a text that spells the token out gets it."""
    try:
        [encoding] = texts.encode(tokenizer, [token])
    except UserError:  # no token writes such a text
        return False
    return tokenizer.token_to_id(token) in encoding.ids


def _save(tokenizer: Tokenizer, eos_token: str, pad_token: str | None, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(into / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # any tokenizer.json as it stands, for AutoTokenizer
        "eos_token": eos_token,
        "pad_token": pad_token,
        "add_bos_token": False,  # asked for by litgpt, which guesses otherwise
        "clean_up_tokenization_spaces": False,  # or decoding would not give the text back
        "model_input_names": ["input_ids", "attention_mask"],  # our models take no token_type_ids
        "model_max_length": 10**30,  # transformers' own "no limit": the context is the model's
    }
    (into / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _round_trip(tokenizer: Tokenizer, train: Path) -> dict[str, Any]:
    """Share of some training documents that decode to just what was encoded; warns below 1."""
    sample = [text[: texts.PIECE_CHARS] for text in next(texts.batches(train), [])[:_SAMPLE_DOCUMENTS]]
    ids = [encoding.ids for encoding in texts.encode(tokenizer, sample)]
    same = sum(tokenizer.decode(each) == text for each, text in zip(ids, sample, strict=True))
    if same < len(sample):
        console.warn(
            f"the tokenizer loses text: {len(sample) - same} of {len(sample)} documents decode to another text. What "
            "it loses costs the model nothing, so bits per byte do not compare with those of other tokenizers"
        )
    return {"lossless": same == len(sample), "round_trip": same / max(len(sample), 1)}
