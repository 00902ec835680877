"""Whatever params.yaml says, it is valid and the model can be counted, or it is refused in words."""

import pytest

from benchmarks.fuzz import parameter_verdicts


@pytest.mark.parametrize("seed", range(1, 4))
def test_mutated_parameters_are_valid_and_count_or_are_refused_in_words(seed: int) -> None:
    found = [(verdict, words, changed) for changed, (verdict, words) in parameter_verdicts(150, seed)]
    assert [odd for odd in found if odd[0] not in ("ok", "refused")] == []
    assert {"ok", "refused"} == {verdict for verdict, _, _ in found}
    assert all(len(words) < 20_000 for _, words, _ in found)
