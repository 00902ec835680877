"""The export stage as DVC runs it, on a small model and on damage."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from pipeline import params
from pipeline.huggingface.verify import _randomize
from pipeline.model import build, checkpoint_folder
from stages.export import app
from tests.model.small import ROOT, tiny


@pytest.fixture
def project(tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    whole = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    model = tiny(block_size=whole["train"]["block_size"])
    whole["model"] = model.model_dump()
    whole["export"] |= {"name": "stories", "dtype": "bfloat16", "gguf": ["f16", "q8_0"]}
    params.validate(whole)
    Path("params.yaml").write_text(yaml.safe_dump(whole))
    gpt = build.build(model, 300)
    _randomize(gpt)
    checkpoint_folder.save(gpt, Path("models/litgpt"), tokenizer_folder)
    return tmp_path


def run() -> Any:
    return CliRunner().invoke(app, [], env={"COLUMNS": "200"})


def test_it_writes_a_folder_that_transformers_and_llama_cpp_read(project: Path) -> None:
    done = run()
    assert done.exit_code == 0, done.output
    assert "export: wrote models/hf" in done.stdout and "MixtralForCausalLM in bfloat16" in done.stdout
    names = {path.name for path in Path("models/hf").iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "stories-f16.gguf",
        "stories-q8_0.gguf",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    report = json.loads(Path("reports/export.json").read_text())
    assert report["max_logit_difference"] <= 1e-4 and report["active_parameters"] < report["parameters"]
    assert AutoModelForCausalLM.from_pretrained("models/hf").dtype == torch.bfloat16


class _Code:
    def __reduce__(self) -> Any:
        return print, ("this must never run",)


def _cut_short() -> None:
    path = Path("models/litgpt/lit_model.pth")
    path.write_bytes(path.read_bytes()[:5000])


def _with_code() -> None:
    torch.save({"weight": _Code()}, "models/litgpt/lit_model.pth")


def _without_weights() -> None:
    Path("models/litgpt/lit_model.pth").unlink()


def _without_tokenizer() -> None:
    Path("models/litgpt/tokenizer.json").unlink()


def _no_folder() -> None:
    Path("models/litgpt").rename("elsewhere")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut_short, "damaged"),
        (_with_code, "holds more than tensors"),
        (_without_weights, "is missing"),
        (_without_tokenizer, "tokenizer.json is no tokenizer"),
        (_no_folder, "is no folder"),
    ],
)
def test_damage_is_told_in_words_with_exit_code_2_and_nothing_is_written(
    project: Path, damage: Any, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage()
    done = run()
    told = done.output + "".join(capfd.readouterr())
    assert done.exit_code == 2
    assert "error: export: " in told and words in told
    assert "this must never run" not in told and "Traceback" not in told
    assert not Path("models/hf").exists() and not Path("reports/export.json").exists()
