"""Parameters hold no login and no key: they are published with what a run leaves."""

from pathlib import Path

import pytest
import yaml

from pipeline import params
from pipeline.errors import UserError
from pipeline.params.secrets import has_secrets, redacted

ROOT = Path(__file__).parents[2]
SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "address",
    [
        f"https://anna:{SECRET}@example.org/a.jsonl",
        f"https://{SECRET}@example.org/a.jsonl",
        f"https://example.org/a.jsonl?part=7&X-Amz-Signature={SECRET}",
        f"https://example.org/a.jsonl?sig={SECRET}&se=2026",
        f"https://example.org/a.jsonl?api%5Fkey={SECRET}",
        f"https://example.org/a.jsonl#access_token={SECRET}",
        f"s3://{SECRET}:{SECRET}@bucket/a.jsonl",
    ],
)
@pytest.mark.parametrize("where", ["urls", "repo", "tokenizer", "as one text"])
def test_an_address_with_a_secret_is_refused_without_repeating_it(address: str, where: str) -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    if where == "tokenizer":
        raw["tokenizer"] |= {"kind": "pretrained", "vocab_size": None, "path": address}
    elif where == "repo":
        hub = yaml.safe_load((ROOT / "configs/download/huggingface.yaml").read_text(encoding="utf-8"))
        raw["download"] = hub | {"repo": address}
    else:
        url = yaml.safe_load((ROOT / "configs/download/url.yaml").read_text(encoding="utf-8"))
        raw["download"] = url | {"urls": [address] if where == "urls" else address}
    with pytest.raises(UserError) as error:
        params.validate(raw)
    assert SECRET not in str(error.value)
    assert where == "as one text" or "~/.netrc" in str(error.value)


@pytest.mark.parametrize(
    "text", ["https://example.org/@anna/a.txt?part=7", "Once upon a time: a fox", "owner/name", ""]
)
def test_other_texts_are_taken_as_they_are(text: str) -> None:
    assert not has_secrets(text) and redacted(text) == text


def test_addresses_within_a_message_are_redacted() -> None:
    said = f"no answer from 'https://a:{SECRET}@b.org/c' nor https://b.org/c?token={SECRET}&n=1"
    assert redacted(said) == "no answer from 'https://***@b.org/c' nor https://b.org/c?token=***&n=1"
