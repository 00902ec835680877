"""Reading a tokenizer folder: tokenizer.json, and the special tokens that tokenizer_config.json names.

ids = load(Path("data/tokenizer")).encode("Once upon a time").ids
special_ids(Path("models/hf"))      # {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.errors import UserError


def load(folder: Path) -> Tokenizer:
    """The tokenizer of `folder`, spelling out special tokens that stand in a text."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception for an absent or unreadable file
        raise UserError(f"{folder / 'tokenizer.json'} is no tokenizer ({error}); run: dvc repro tokenize") from None
    tokenizer.encode_special_tokens = True
    return tokenizer


def eos_id(folder: Path) -> int:
    """Id of the EOS token, which follows every document."""
    path = folder / "tokenizer_config.json"
    text = special_token(settings(folder), "eos")
    if text is None:
        raise UserError(f"{path} names no eos_token; run: dvc repro tokenize")
    token_id = load(folder).token_to_id(text)
    if token_id is None:
        raise UserError(f"{path}: eos_token {text!r} is not in {folder / 'tokenizer.json'}; run: dvc repro tokenize")
    return token_id


def vocab_size(folder: Path) -> int:
    """Rows that an embedding needs: the highest id and one (a pretrained vocabulary may have gaps)."""
    return max(load(folder).get_vocab(with_added_tokens=True).values()) + 1


def settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; {} where there is none. Raises UserError for one that holds no JSON object."""
    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON ({error}); take the tokenizer's folder as it was published") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no JSON object; take the tokenizer's folder as it was published")
    return settings


def special_token(settings: dict[str, Any], kind: str) -> str | None:
    """The text of the bos, eos or pad token: it may be spelt out, be {"content": text, …}, be null or be absent."""
    token = settings.get(f"{kind}_token")
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def special_ids(folder: Path) -> dict[str, int | None]:
    """bos_token_id, eos_token_id and pad_token_id; None for one that is not named, or not in the vocabulary."""
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    named = settings(folder)
    texts = {kind: special_token(named, kind) for kind in ("bos", "eos", "pad")}
    return {f"{kind}_token_id": words.token_to_id(text) if text else None for kind, text in texts.items()}
