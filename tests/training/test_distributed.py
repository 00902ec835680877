"""Several processes train as one does: real ones, over gloo."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.params import Params
from pipeline.training import checkpoint
from tests.training.small import ROOT, run, tiny, weights

STEPS = 6


def rank(corpus: Path, out: Path, parameters: Params, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    report = run(corpus, out, parameters)
    if report:
        (out / "report.json").write_text(json.dumps(report))


def together(children: Any, corpus: Path, out: Path, parameters: Params, world: int = 2) -> dict[str, Any]:
    """Train in `world` processes that find each other by the environment, as under torchrun or Slurm."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for i in range(world):
        environment = {
            "LOCAL_RANK": str(i), "NODE_RANK": "0", "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        processes.append(children.Process(target=rank, args=(corpus, out, parameters, environment)))
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * world
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def losses(out: Path, column: str = "loss") -> list[float]:
    (path,) = out.glob("runs/*/metrics.csv")
    rows = [line.split(",") for line in path.read_text().splitlines()]
    i = rows[0].index(column)
    return [float(row[i]) for row in rows[1:] if row[i]]


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that sees the global batch at once, so that its load balancing is over all of it."""
    out = tmp_path_factory.mktemp("alone")
    run(corpus, out, tiny(max_steps=STEPS, micro_batch_size=8))
    return out


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(
    children: Any, corpus: Path, alone: Path, tmp_path: Path, strategy: str
) -> None:
    parameters = tiny(max_steps=STEPS, devices=2, device="auto", strategy=strategy)
    report = together(children, corpus, tmp_path, parameters)
    assert report["devices"] == 2 and report["tokens"] == STEPS * 8 * 32
    for column in ("loss", "balance_loss", "z_loss", "grad_norm", "load_entropy"):
        assert losses(tmp_path, column) == pytest.approx(losses(alone, column), rel=1e-4)
    assert report["val_loss"] == pytest.approx(losses(alone, "val_loss")[-1], rel=1e-4)
    mine, theirs = weights(tmp_path), weights(alone)
    assert all((mine[name] - theirs[name]).abs().max() < 1e-3 for name in theirs)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_go_on_from_their_checkpoint(children: Any, corpus: Path, tmp_path: Path, strategy: str) -> None:
    parameters = tiny(max_steps=STEPS, devices=2, device="auto", strategy=strategy, keep_checkpoints=9)
    first = together(children, corpus, tmp_path, parameters)
    before = weights(tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    saved = checkpoint.newest(folder)
    assert saved is not None and saved.step == STEPS and first["resumed_from"] is None
    longer = tiny(max_steps=STEPS, devices=2, device="auto", strategy=strategy, keep_checkpoints=9, log_every=2)
    again = together(children, corpus, tmp_path, longer)
    assert again["resumed_from"] == STEPS and again["val_loss"] == pytest.approx(first["val_loss"], rel=1e-6)
    assert all(before[name].equal(value) for name, value in weights(tmp_path).items())


def test_the_stage_starts_its_other_process_itself(corpus: Path, tmp_path: Path) -> None:
    for name in ("tokens", "tokenizer"):
        shutil.copytree(corpus / name, tmp_path / "data" / name)
    parameters = tiny(max_steps=2, devices=2)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-m", "stages.train"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "reports" / "train.json").read_text())
    assert report["devices"] == 2 and report["steps"] == 2
    assert done.stdout.count("train: wrote models/litgpt") == 1
    assert (tmp_path / "models" / "litgpt" / "lit_model.pth").is_file()
