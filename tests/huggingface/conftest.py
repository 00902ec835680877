"""The small tokenizer of the model's tests."""

from tests.model.conftest import tokenizer_folder  # noqa: F401 - a fixture
