"""Decontamination: what stands in val or in a benchmark leaves the training set."""

import json
from pathlib import Path

import pytest

from pipeline.errors import UserError
from tests.clean.test_cleaning import NEAR, SAMPLE, run, side


def test_val_keeps_its_copy_and_train_what_does_not_overlap(tmp_path: Path) -> None:
    splits = ["train"] * 40 + ["val"] * 20
    quoting = "A new beginning. " + " ".join(SAMPLE[50].split()[5:40]) + " And another end."
    report = run(
        tmp_path, [*SAMPLE, SAMPLE[41], quoting], [*splits, "train", "train"],
        near_duplicates=NEAR, decontaminate_val=True, decontaminate_ngram=25,
    )  # fmt: skip
    assert side(tmp_path, "val") == SAMPLE[40:]
    assert SAMPLE[41] not in side(tmp_path, "train") and quoting not in side(tmp_path, "train")
    assert report["split"] == "as given"
    assert report["steps"]["exact_duplicates"]["documents_dropped"] == 1
    assert quoting[:300] in report["dropped"]["val_overlap"]["examples"]


def test_documents_of_a_benchmark_leave_train(tmp_path: Path) -> None:
    secret = "the quick brown fox jumps over the lazy dog while seven small birds sing in a tree"
    (tmp_path / "bench.jsonl").write_text(json.dumps({"text": f"Question: {secret.upper()}?"}) + "\n")
    documents = [*SAMPLE, f"Dear reader, {secret}, and so we end this little story, dear reader, with a good night."]
    report = run(tmp_path, documents, decontaminate=[str(tmp_path / "bench.jsonl")], val_fraction=0.1)
    assert report["dropped"]["benchmark_overlap"]["documents"] == 1
    assert not any(secret in text for text in side(tmp_path, "train"))
    with pytest.raises(UserError, match=r"clean\.decontaminate: absent\.txt: no such file"):  # said before any work
        run(tmp_path, ["too", "short"], decontaminate=["absent.txt"])
    (tmp_path / "bench.jsonl").write_text('{"question": 1}\n')
    with pytest.raises(UserError, match=r"clean\.decontaminate: .*bench\.jsonl: line 1: no field 'text'"):
        run(tmp_path, SAMPLE, decontaminate=[str(tmp_path / "bench.jsonl")])


def test_a_short_benchmark_text_is_sought_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "bench.jsonl").write_text('{"text": "What does a red fox eat?"}\n{"text": ""}\n{"text": "..."}\n')
    documents = [*SAMPLE, "what does a Red Fox eat", "What does a red fox eat? Nobody knows.", "!!!"]
    report = run(tmp_path, documents, decontaminate=[str(tmp_path / "bench.jsonl")], min_chars=0, val_fraction=0.001)
    assert report["dropped"]["benchmark_overlap"]["examples"] == ["what does a Red Fox eat"]
