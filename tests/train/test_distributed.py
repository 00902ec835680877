"""Several processes train as one does: real ones, over gloo."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.train import launch, resume
from pipeline.train.process import rank as rank_of_this_process
from pipeline.train.step import Step
from tests.train.small import ROOT, run, tiny, weights

STEPS = 6


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def rank(corpus: Path, out: Path, parameters: Params, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    report = run(corpus, out, parameters)
    if report:
        (out / "report.json").write_text(json.dumps(report))


def together(children: Any, corpus: Path, out: Path, parameters: Params, world: int = 2) -> dict[str, Any]:
    """Train in `world` processes that find each other by the environment, as under torchrun or Slurm."""
    port = str(free_port())
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


def test_two_processes_that_accumulate_have_the_gradient_of_one(children: Any, corpus: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 3, "device": "auto", "balance_coef": 0.0}  # balancing is over what a step saw so far
    run(corpus, tmp_path / "one", tiny(micro_batch_size=8, **settings))
    together(children, corpus, tmp_path / "two", tiny(micro_batch_size=2, devices=2, strategy="ddp", **settings))
    for column in ("loss", "z_loss", "grad_norm"):
        assert losses(tmp_path / "two", column) == pytest.approx(losses(tmp_path / "one", column), rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_go_on_from_their_checkpoint(children: Any, corpus: Path, tmp_path: Path, strategy: str) -> None:
    parameters = tiny(max_steps=STEPS, devices=2, device="auto", strategy=strategy, keep_checkpoints=9)
    first = together(children, corpus, tmp_path, parameters)
    before = weights(tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    saved = resume.opened(folder)
    assert saved.step == STEPS and first["resumed_from"] is None
    longer = tiny(max_steps=STEPS, devices=2, device="auto", strategy=strategy, keep_checkpoints=9, log_every=2)
    again = together(children, corpus, tmp_path, longer)
    assert again["resumed_from"] == STEPS and again["val_loss"] == pytest.approx(first["val_loss"], rel=1e-6)
    assert all(before[name].equal(value) for name, value in weights(tmp_path).items())


def stage(
    corpus: Path, out: Path, parameters: Params, *start: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The train stage as a user starts it, in a project of its own."""
    for name in ("tokens", "tokenizer"):
        shutil.copytree(corpus / name, out / "data" / name, dirs_exist_ok=True)
    (out / "params.yaml").write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"} | environment
    return subprocess.run(
        [sys.executable, *start, "-m", "stages.train"],
        cwd=out, env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip


def torchrun(processes: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]


def test_the_stage_starts_its_other_process_itself(corpus: Path, tmp_path: Path) -> None:
    done = stage(corpus, tmp_path, tiny(max_steps=2, devices=2))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "reports" / "train.json").read_text())
    assert report["devices"] == 2 and report["steps"] == 2
    assert done.stdout.count("train: wrote models/litgpt") == 1
    assert (tmp_path / "models" / "litgpt" / "lit_model.pth").is_file()


def test_under_torchrun_the_stage_has_the_losses_of_one_process(corpus: Path, alone: Path, tmp_path: Path) -> None:
    done = stage(corpus, tmp_path, tiny(max_steps=STEPS, devices=2), *torchrun(2))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "reports" / "train.json").read_text())
    assert report["devices"] == 2 and report["loss"] == pytest.approx(losses(alone, "lm_loss")[-1], rel=1e-4)
    assert report["val_loss"] == pytest.approx(losses(alone, "val_loss")[-1], rel=1e-4)
    assert done.stdout.count("train: wrote models/litgpt") == 1


def test_an_error_on_rank_0_alone_ends_all_ranks_and_is_told_once(corpus: Path, tmp_path: Path) -> None:
    done = stage(corpus, tmp_path, tiny(max_steps=2, devices=2), MOE_RESUME="nowhere")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1 and "nowhere is no checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


def begun(corpus: Path, out: Path, parameters: Params) -> subprocess.Popen[str]:
    """The train stage in a project and a process group of its own, not waited for."""
    for name in ("tokens", "tokenizer"):
        shutil.copytree(corpus / name, out / "data" / name)
    (out / "params.yaml").write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train"],
        cwd=out, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to a group of processes")
def test_ranks_obey_a_signal_between_lines_of_metrics_and_rank_0_gives_the_exit_code(
    corpus: Path, tmp_path: Path
) -> None:
    parameters = tiny(max_steps=10**6, devices=2, log_every=10**6, checkpoint_every=10)
    process = begun(corpus, tmp_path, parameters)
    while process.poll() is None and not list(tmp_path.glob("checkpoints/*/step-*")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped by SIGINT after step" in said and "Traceback" not in said


def left_alone(corpus: Path, out: Path, parameters: Params, environment: dict[str, str], signs: Any) -> None:
    os.environ.update(environment)
    launch._TO_MEET = timedelta(seconds=3)
    try:
        run(corpus, out, parameters)
    except UserError as error:
        signs.put(str(error))


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_no_other_joins_leaves_with_words(
    children: Any, corpus: Path, tmp_path: Path, number: int
) -> None:
    environment = {
        "LOCAL_RANK": str(number), "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    signs = children.Queue()
    process = children.Process(
        target=left_alone, args=(corpus, tmp_path, tiny(devices=2, max_steps=2), environment, signs)
    )
    process.start()
    assert "another process of this run has ended or cannot be reached" in signs.get(timeout=100)
    process.join()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the other process in /proc")
@pytest.mark.parametrize("killed", ["rank 0", "rank 1"])
def test_a_rank_that_is_killed_ends_the_other_with_words(corpus: Path, tmp_path: Path, killed: str) -> None:
    parameters = tiny(max_steps=10**6, devices=2, log_every=10**6, checkpoint_every=10)
    process = begun(corpus, tmp_path, parameters)
    while process.poll() is None and not list(tmp_path.glob("checkpoints/*/step-*")):
        time.sleep(0.05)
    (child,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(process.pid if killed == "rank 0" else child, signal.SIGKILL)
    _, said = process.communicate(timeout=60)  # until the last of them has closed the pipe
    assert process.returncode == (-signal.SIGKILL if killed == "rank 0" else 2), said
    assert "another process of this run has ended" in said and "Traceback" not in said
    assert list(tmp_path.glob("checkpoints/*/step-*"))


def with_a_reader_that_is_killed(corpus: Path, out: Path, words: Any) -> None:
    original = Step.__call__

    def kill_reader(self: Any, number: int, batches: Any) -> None:
        if number == 3:
            for reader in multiprocessing.active_children():
                os.kill(reader.pid or 0, signal.SIGKILL)
        original(self, number, batches)

    Step.__call__ = kill_reader  # type: ignore[method-assign]
    try:
        run(corpus, out, tiny(num_workers=1, max_steps=1000))
    except UserError as error:
        words.put(str(error))


def test_a_reader_that_is_killed_ends_training_with_words(children: Any, corpus: Path, tmp_path: Path) -> None:
    words = children.Queue()  # in a process of its own: torch raises from a handler of signals, wherever that finds it
    process = children.Process(target=with_a_reader_that_is_killed, args=(corpus, tmp_path, words))
    process.start()
    said = words.get(timeout=100)
    assert re.match(r"a process that reads tokens has ended .*train\.num_workers \(now 1\)", said), said
    process.join()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}, "is 3, 3 on each node"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "1"}, "is 4, 1 on each node"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "train"}, "Slurm's job has 2 tasks"),
    ],
)
def test_another_number_of_processes_than_params_say_is_refused_on_each(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    train = tiny(devices=2, num_nodes=2, global_batch_size=16).train
    with pytest.raises(UserError, match=rf"train.devices = 2 and train.num_nodes = 2 are 4 processes, but .*{words}"):
        launch.fabric_for(train, "cpu")


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "4"}, True),
        ({"NODE_RANK": "1"}, False),  # the first process of the second node, before it starts others
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "8"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1", "NODE_RANK": "0"}, False),  # started by Fabric within a Slurm task
    ],
)
def test_one_process_alone_reports(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (rank_of_this_process() == 0) == first


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError()])
def test_a_reader_that_ends_while_a_batch_comes_from_it_is_named(error: Exception) -> None:
    with (
        pytest.raises(UserError, match=r"a process that reads tokens has ended"),
        launch.processes(tiny(num_workers=1).train, "cpu"),
    ):
        raise error


def test_the_group_is_freed_after_the_model_and_not_by_it() -> None:
    code = """if 1:
        import atexit, sys, torch.distributed as dist
        from pipeline.train import launch
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        group = dist.group.WORLD
        launch._leave_group()
        assert not dist.is_initialized()
        before = sys.getrefcount(group)
        atexit._run_exitfuncs()
        print(before - sys.getrefcount(group))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
