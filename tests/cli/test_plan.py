"""`moe plan` counts what a run would take, also for a GPU that is elsewhere and for parameters not composed yet."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pipeline import console
from pipeline.cli.app import app
from pipeline.cli.plan import forecast, n_bytes, wanted
from pipeline.errors import UserError
from pipeline.model import checkpoint_folder, size
from tests.train.small import ROOT, run, tiny


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


def test_the_answer_needs_no_torch(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes seconds to load; on a machine with a GPU torch is asked what it is."""
    monkeypatch.chdir(ROOT)
    program = (
        "import sys; from pathlib import Path; from pipeline.cli.plan import forecast, wanted\n"
        "parameters = wanted(Path('absent.yaml'), ['train.device=cpu', 'model.block_size=64'])\n"
        f"data, absent = Path({str(work / 'data')!r}), Path('absent')\n"
        "for tokens, tokenizer in ((data / 'tokens', data / 'tokenizer'), (absent, absent)):\n"
        "    *_, time = forecast(parameters, tokens, tokenizer, within=10**9)\n"
        "    assert time.startswith('time: '), time\n"
        "heavy = {'torch', 'litgpt', 'transformers', 'wandb', 'litdata'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_disk_is_counted_as_training_writes_it(work: Path, tmp_path: Path) -> None:
    parameters = tiny(model={"n_embd": 64, "vocab_size": 4096}, max_steps=1)
    (line,) = [each for each in forecast(parameters, tmp_path, tmp_path) if each.startswith("disk: ")]
    run(work / "data", tmp_path, parameters)
    (state,), weights = tmp_path.glob("runs/*/*/state.pt"), tmp_path / "model/lit_model.pth"
    found = re.search(r"\(3 checkpoints ([\d.]+) MB, the model ([\d.]+) MB, exported ([\d.]+) MB, DVC", line)
    assert found and parameters.train.keep_checkpoints == 2
    counted = [float(number) * 1e6 for number in found.groups()]
    assert counted == pytest.approx([3 * state.stat().st_size, *2 * [weights.stat().st_size]], rel=0.03)


def test_an_earlier_training_here_tells_the_time(tmp_path: Path) -> None:
    parameters, report = tiny(model={"vocab_size": 300}, max_tokens=10**6), tmp_path / "train.json"

    def time(**reported: Any) -> str:
        report.write_text(json.dumps(reported))
        *_, line = forecast(parameters, tmp_path, tmp_path, report=report)
        return line

    flops = size.count(parameters.model, 300).flops_per_token(32)
    known = {"device": "cpu", "devices": 2, "precision": "32-true"}
    known |= {"tokens_per_second": 20_000.0, "flops_per_token": flops / 2}
    assert time(**known).startswith(f"time: 3 min 20 s on 1 x cpu ({flops * 5000 / 1e12:.2f} TFLOP/s, as in ")
    precise: dict[str, Any] = {"precision": "bf16-mixed"}
    for other in ({"device": "cuda"}, {"tokens_per_second": 0.0}, {"devices": None}, precise, {"flops_per_token": 1e9}):
        assert "measured matmul" in time(**known | other)


def test_a_run_here_is_measured(tmp_path: Path) -> None:
    parameters = tiny(model={"vocab_size": 300}, max_tokens=10**6)
    (time,) = [line for line in forecast(parameters, tmp_path, tmp_path) if line.startswith("time: ")]
    assert "on 1 x cpu" in time and "measured" in time


@pytest.mark.parametrize("model", [{}, {"dense_baseline": "active"}, {"router": "sigmoid"}])
def test_a_few_seconds_of_training_tell_the_time(tmp_path: Path, model: dict[str, Any]) -> None:
    parameters = tiny(model={"vocab_size": 300} | model, max_tokens=10**6, precision="auto")
    (time,) = [line for line in forecast(parameters, tmp_path, tmp_path, measure=True) if line.startswith("time: ")]
    assert re.fullmatch(r"time: .+ on 1 x cpu \([\d,]+ tokens/s, measured for some seconds, not compiled\)", time)


def test_micro_batches_that_memory_decides_are_named(tmp_path: Path) -> None:
    parameters = tiny(model={"vocab_size": 300}, max_tokens=10**6, micro_batch_size="auto", device="cpu")
    lines = list(forecast(parameters, tmp_path, tmp_path))
    assert any(line.startswith("micro batch: 8 samples, the most that ") for line in lines)
    with pytest.raises(UserError, match="do not suffice"):
        list(forecast(parameters, tmp_path, tmp_path, within=1000))
    parameters = tiny(model={"vocab_size": 300}, max_tokens=10**6, micro_batch_size="auto", device="cuda")
    if not torch.cuda.is_available():
        lines = list(forecast(parameters, tmp_path, tmp_path))
        assert any(line.startswith("micro batch: the most that fit where it trains") for line in lines)


def test_an_override_that_cannot_be_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"model\.n_expert = 100000: "):
        wanted(Path("params.yaml"), ["model.n_expert=100000"])


def _with_memory(folder: Path, overrides: list[str], memory: str) -> str:
    parameters = wanted(Path("absent.yaml"), ["model=moe_200m", "tokenizer=gpt2", *overrides])
    name = console.size(n_bytes(memory))
    (line,) = [line for line in forecast(parameters, folder, folder, n_bytes(memory)) if line.startswith(f"{name}: ")]
    return line


def test_the_largest_micro_batch_that_fits_is_named_and_one_more_would_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    line = _with_memory(tmp_path, ["train=gpu24gb"], "40GB")
    assert line.startswith("40.0 GB: fits; the largest micro batch that does: -S train.micro_batch_size=")
    largest = int(line.rpartition("=")[2])
    needs = []
    for n_samples in (largest, 2 * largest):
        settings = ["model=moe_200m", "tokenizer=gpt2", "train=gpu24gb", f"train.micro_batch_size={n_samples}"]
        lines = forecast(wanted(Path("absent.yaml"), settings), tmp_path, tmp_path)
        (need,) = [line for line in lines if line.startswith("memory on each device: about ")]
        needs.append(float(need.split()[5]))
    assert needs[0] <= 40 < needs[1]


def test_the_time_on_a_named_card_is_told_and_an_unknown_card_is_refused(tmp_path: Path) -> None:
    parameters = tiny(model={"vocab_size": 300}, max_tokens=10**6)
    times = [
        line for line in forecast(parameters, tmp_path, tmp_path, card="nvidia rtx 3060") if line.startswith("time: ")
    ]
    assert len(times) == 1 and "on 1 x RTX 3060 (50% to 20% of 25.60 TFLOP/s" in times[0]
    with pytest.raises(UserError, match=r"no datasheet of it here; known are .*RTX 3060"):
        list(forecast(parameters, tmp_path, tmp_path, card="RTX 3060 Ti"))


def test_what_would_fit_is_said_where_the_parameters_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    line = _with_memory(tmp_path, ["train=gpu24gb"], "6GB")
    assert line.startswith("6.0 GB: will not fit; what would: -S ")
    settings = line.partition("what would: ")[2].replace("-S ", "").split()
    assert "fits" in _with_memory(tmp_path, ["train=gpu24gb", *settings], "6GB")
    assert "whatever the settings" in _with_memory(tmp_path, ["train=gpu24gb"], "100MB")


def test_a_cpu_is_offered_nothing_that_only_a_gpu_runs(tmp_path: Path) -> None:
    parameters = tiny(model={"vocab_size": 300}, max_tokens=10**6, device="cpu")
    wants = {None: "will not fit, whatever the settings", "T4": "-S train.optimizer.name=adamw8bit"}
    for card, words in wants.items():
        (line,) = [line for line in forecast(parameters, tmp_path, tmp_path, 600_000, card) if "600.0 kB: " in line]
        assert words in line


@pytest.mark.parametrize("memory", ["much", "-6GB", "0", ""])
def test_what_is_no_size_is_refused_in_words(memory: str) -> None:
    with pytest.raises(UserError, match="not a size; write it as 6GB"):
        n_bytes(memory)


def test_finetuning_is_planned_for_the_model_of_its_checkpoint_and_lora_takes_less(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    need = {}
    for method in ("full", "lora"):
        overrides = [f"finetune={method}", f"finetune.checkpoint={work / 'models/litgpt'}"]
        command = ["plan", "--finetune", *(part for override in overrides for part in ("-S", override))]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
        total = size.count(*checkpoint_folder.described(work / "models/litgpt")).total
        assert lines["parameters"].startswith(f"{total:,} ")
        need[method] = float(lines["memory on each device"].split()[1])
        assert ("trained" in lines) == (method == "lora")
    assert need["lora"] < need["full"]
