"""`moe plan` counts what a run would take, also for a GPU that is elsewhere and for parameters not composed yet."""

from pathlib import Path

import pytest
import torch

from pipeline.cli.plan import forecast, wanted
from pipeline.errors import UserError
from tests.train.small import ROOT, tiny


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of a machine without a GPU")
def test_a_gpu_preset_is_counted_on_a_laptop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    parameters = wanted(Path("absent.yaml"), ["train=kaggle_t4x2", "model=moe_200m", "tokenizer=gpt2"])
    assert parameters.train.devices == 2 and parameters.model.block_size == 2048
    lines = list(forecast(parameters, tmp_path, tmp_path))
    assert any(line.startswith("parameters: 549,") for line in lines)
    assert any(line.startswith("memory on each device: about 12.9 GB") for line in lines)
    assert any(line.startswith("time: ") and "on 2 x T4" in line for line in lines)
    assert "not for this machine: train.device: torch finds no 'cuda'" in capsys.readouterr().err


def test_a_run_here_is_measured(tmp_path: Path) -> None:
    parameters = tiny(model={"vocab_size": 300}, max_tokens=10**6)
    (time,) = [line for line in forecast(parameters, tmp_path, tmp_path) if line.startswith("time: ")]
    assert "on 1 x cpu" in time and "measured" in time


def test_an_override_that_cannot_be_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"model\.n_expert = 100000: "):
        wanted(Path("params.yaml"), ["model.n_expert=100000"])
