"""One small task through the real lm-eval, against log-probabilities computed with our own model."""

import json
import os
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.evaluate import harness
from pipeline.model.build import MoEGPT
from pipeline.tokens import tokenizer as vocabulary

pytestmark = pytest.mark.skipif(not harness.installed(), reason="the extra lm-eval is not installed")
QUESTIONS = [
    ("Once upon a time, there was a", [" little girl", " zzzz qqqq"], 0),
    ("They were very", [" xylophone ouch", " happy"], 1),
    ("The cat said", [' "Hello."', " the the the"], 0),
    ("One day", [" it rained", ","], 1),
]
TASK = """
task: endings
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", os.fspath(tmp_path / "cache"))
    rows = [{"text": text, "choices": choices, "answer": answer} for text, choices, answer in QUESTIONS]
    (tmp_path / "endings.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    path = tmp_path / "endings.yaml"
    path.write_text(TASK.format(data=tmp_path / "endings.jsonl"), encoding="utf-8")
    return os.fspath(path)


def test_answers_as_our_own_model_would(task: str, model: MoEGPT, work: Path) -> None:
    tokenizer = vocabulary.load(work / "data/tokenizer")

    def likelihood(text: str, choice: str) -> float:
        context, both = tokenizer.encode(text).ids, tokenizer.encode(text + choice).ids
        with torch.inference_mode():
            log_p = model.eval()(torch.tensor([both]))[0].log_softmax(-1)
        return sum(float(log_p[i - 1, both[i]]) for i in range(len(context), len(both)))

    right = [
        max(range(2), key=lambda c, t=text, o=choices: likelihood(t, o[c])) == answer
        for text, choices, answer in QUESTIONS
    ]
    found = harness.run(model, work / "data/tokenizer", harness.load([task]), torch.device("cpu"), batch_size=2)
    assert found == {"endings": {"acc": sum(right) / len(right)}}


def test_a_task_file_that_is_missing_broken_or_without_its_data_is_named_before_anything_is_computed(
    task: str, tmp_path: Path
) -> None:
    harness.load([task])
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        harness.load(["nowhere.yaml"])
    broken, alone = tmp_path / "broken.yaml", tmp_path / "alone.yaml"
    broken.write_text("task: [", encoding="utf-8")
    alone.write_text(TASK.format(data=tmp_path / "lost.jsonl"), encoding="utf-8")
    for path in (broken, alone):
        with pytest.raises(UserError, match=path.name):
            harness.load([task, str(path)])
