"""The longest overlap against trying every pair of places."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate.memorisation import Index, Overlap


def by_trying(text: list[int], train: list[int]) -> int:
    best = 0
    for i in range(len(text)):
        for j in range(len(train)):
            length = 0
            while i + length < len(text) and j + length < len(train) and text[i + length] == train[j + length]:
                length += 1
            best = max(best, length)
    return best


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 3), max_size=25), st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_finds_the_longest_run(text: list[int], train: list[int]) -> None:
    found = Index(np.array(train)).longest(np.array(text, np.int64))
    assert found.length == by_trying(text, train)
    assert text[found.at : found.at + found.length] == train[found.in_training : found.in_training + found.length]


def test_a_planted_run_is_found_where_it_is() -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 70_000, 20_000)  # more token ids than 16 bits hold
    text = np.concatenate([rng.integers(70_000, 80_000, 50), train[12_345:12_385], [99_999_999]])
    assert Index(train).longest(text) == Overlap(40, 50, 12_345)


def test_tokens_never_seen_overlap_with_nothing() -> None:
    assert Index(np.array([1, 2, 3])).longest(np.array([7, 0, 9])).length == 0


def test_a_run_may_be_all_of_both() -> None:
    tokens = np.array([5, 6, 5, 6, 5])
    assert Index(tokens).longest(tokens) == Overlap(5, 0, 0)
