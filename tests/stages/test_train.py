"""The train stage, called as DVC calls it but for the process: what it writes, says and exits with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from pipeline.params import Params
from stages import train
from tests.train.conftest import corpus
from tests.train.small import tiny

__all__ = ["corpus"]  # a fixture


@pytest.fixture
def project(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the stage in a project of its own; returns reports/train.json."""
    for name in ("tokens", "tokenizer"):
        shutil.copytree(corpus / name, tmp_path / "data" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def run(parameters: Params) -> dict[str, Any]:
        Path("params.yaml").write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
        train.main(Path("params.yaml"), "auto")
        report: dict[str, Any] = json.loads(Path("reports/train.json").read_text())
        return report

    torch.set_num_threads(1)
    return run


def test_a_session_that_time_ends_reports_the_losses_of_what_it_saved_and_the_next_goes_on(
    project: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = tiny(max_steps=3, max_minutes=1e-9, log_every=50)
    first = project(parameters)
    said = capsys.readouterr()
    assert first["stopped_by"] == "max_minutes" and first["steps"] == 1
    assert f"val loss {first['val_loss']:.3f} after 256 tokens" in said.out
    assert "after step 1 of 3" in said.err and "dvc repro --force --single-item train" in said.err
    saved = torch.load("models/litgpt/lit_model.pth", weights_only=True)
    second = project(tiny(max_steps=3, log_every=50))
    assert second["stopped_by"] == "max_steps" and second["resumed_from"] == 1
    assert second["loss"] != first["loss"] and second["val_loss"] < first["val_loss"]
    now = torch.load("models/litgpt/lit_model.pth", weights_only=True)
    assert not now["lm_head.weight"].equal(saved["lm_head.weight"])


def test_what_cannot_be_exits_with_2_and_words(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left:
        project(tiny(initial_checkpoint="nowhere"))
    assert left.value.exit_code == 2
    assert "nowhere is no folder" in capsys.readouterr().err


def test_another_rank_tells_its_error_with_its_number(
    project: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(typer.Exit) as left:
        project(tiny(model={"vocab_size": 100}))
    assert left.value.exit_code == 2
    assert "train, rank 3: model.vocab_size = 100" in capsys.readouterr().err
