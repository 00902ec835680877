"""Reading a tokenizer folder: tokenizer.json, and the special tokens that tokenizer_config.json names.

ids = load(Path("data/tokenizer")).encode("Once upon a time").ids
special_ids(Path("models/hf"))      # {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 188}
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.errors import UserError

_AGAIN = "run: dvc repro tokenize, or take the tokenizer's folder as it was published"
_MOST_TOKENS = 2**24  # an id above comes from a damaged file, and an array over the vocabulary would fill the memory


def load(path: Path) -> Tokenizer:
    """The tokenizer of a folder, or of a tokenizer.json, so that a text has one spelling and all of it is spelt.

    Special tokens that stand in a text are spelt out; dropout of BPE merges, truncation and padding are off. Raises
    UserError for a file that is missing or damaged.
    """
    path = path / "tokenizer.json" if path.is_dir() else path
    with in_words(f"{path} is no tokenizer"):
        tokenizer = Tokenizer.from_file(str(path))
    top = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if top >= _MOST_TOKENS:
        raise UserError(f"{path} has a token with the id {top:,}; allowed: less than {_MOST_TOKENS:,}; {_AGAIN}")
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


@contextmanager
def in_words(what: str) -> Iterator[None]:
    """Turn what tokenizers raises (a bare Exception, or a BaseException where Rust panics) into a UserError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"{what} ({' '.join(str(error).split())[:200]}); {_AGAIN}") from None


def eos_id(folder: Path) -> int:
    """Id of the EOS token, which follows every document."""
    token_id = special_ids(folder)["eos_token_id"]
    if token_id is None:
        named = special_token(settings(folder), "eos")
        path = folder / "tokenizer_config.json"
        raise UserError(f"{path}: eos_token is {named!r}, which is not in tokenizer.json; {_AGAIN}")
    return token_id


def vocab_size(folder: Path) -> int:
    """Rows that an embedding needs: the highest id and one (a pretrained vocabulary may have gaps)."""
    return max(load(folder).get_vocab(with_added_tokens=True).values()) + 1


def settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; {} where there is none. Raises UserError for one that holds no JSON object."""
    return read_object(folder / "tokenizer_config.json")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is no file. Raises UserError for other content."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}); {_AGAIN}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object; {_AGAIN}")
    return found


def special_token(settings: dict[str, Any], kind: str) -> str | None:
    """The text of the bos, eos or pad token: it may be spelt out, be {"content": text, …}, be null or be absent."""
    token = settings.get(f"{kind}_token")
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def special_ids(folder: Path) -> dict[str, int | None]:
    """bos_token_id, eos_token_id and pad_token_id; None for one that is not named, or not in the vocabulary."""
    words, named = load(folder), settings(folder)
    texts = {kind: special_token(named, kind) for kind in ("bos", "eos", "pad")}
    return {f"{kind}_token_id": words.token_to_id(text) if text else None for kind, text in texts.items()}
