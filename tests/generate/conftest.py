"""The corpus, tokens and small model of the evaluation's tests."""

from tests.evaluate.conftest import parameters, work

__all__ = ["parameters", "work"]
