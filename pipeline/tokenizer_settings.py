"""What stands beside a tokenizer.json: the settings of tokenizer_config.json, and the ids of the markers it names.

special_ids(Path("models/hf"))      # {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.errors import UserError


def read(folder: Path) -> dict[str, Any]:
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


def marker(settings: dict[str, Any], kind: str) -> str | None:
    """The text of the bos, eos or pad token: it may be spelt out, be {"content": text, …}, be null or be absent."""
    token = settings.get(f"{kind}_token")
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def special_ids(folder: Path) -> dict[str, int | None]:
    """bos_token_id, eos_token_id and pad_token_id; None for one that is not named, or not in the vocabulary."""
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = read(folder)
    texts = {kind: marker(settings, kind) for kind in ("bos", "eos", "pad")}
    return {f"{kind}_token_id": words.token_to_id(text) if text else None for kind, text in texts.items()}
