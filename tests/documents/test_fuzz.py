"""Damaged files of every format, the short form of `python -m benchmarks.fuzz files`."""

from collections import Counter

from benchmarks.fuzz import mutations, verdicts


def test_two_hundred_damaged_files_are_read_or_refused_in_words() -> None:
    counts: Counter[str] = Counter()
    for (name, _), (verdict, words) in verdicts(mutations(200, seed=7)):
        assert verdict in ("ok", "refused"), f"{name}: {words}"
        counts[verdict] += 1
    assert counts["ok"] and counts["refused"] and counts.total() == 200


def test_a_hang_and_a_crash_are_told_from_a_refusal() -> None:
    inputs = [("1.txt", b"A story."), ("2.jsonl", b"nonsense")]
    assert [verdict for _, (verdict, _) in verdicts(iter(inputs))] == ["ok", "refused"]
    long = [(name, data * 2_000_000) for name, data in inputs]  # read in no time, but not in none
    assert [verdict for _, (verdict, _) in verdicts(iter(long), seconds=0)] == ["hang", "hang"]
