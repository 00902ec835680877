"""What params.yaml may not be, in words."""

from pathlib import Path

import pytest

from pipeline import params
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: 2024-99-99", "params.yaml"),
        ("? [1, 2]\n: 3", "params.yaml"),
        ("\x00", "not valid YAML"),
        ("- 1", "holds no sections"),
        ("", "holds no sections"),
        ("a: &a [*a]", "no such parameter"),
    ],
)
def test_a_file_that_is_no_parameters_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        params.load(path)


def test_bytes_that_are_no_text_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"train: \xff\xfe")
    with pytest.raises(UserError, match="not valid YAML"):
        params.load(path)
