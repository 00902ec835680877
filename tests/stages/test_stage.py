"""What all stages share: inputs that change meanwhile, what the machine refuses, signals, two writers of one output."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from pipeline import files
from pipeline.errors import UserError
from pipeline.stage import Job, stage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("pipeline/clean", "pipeline/documents", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/part-00000.parquet").write_bytes(b"raw")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def run_clean(meanwhile: object) -> Job:
    with stage("clean", Path("params.yaml")) as job:
        assert callable(meanwhile)
        meanwhile()
        job.finish({"documents": 1}, wrote=[], summary="1 document", metrics={"documents": 1})
    return job


@pytest.mark.parametrize(
    ("meanwhile", "named"),
    [
        (
            lambda: edit(Path("params.yaml"), "val_fraction: 0.02", "val_fraction: 0.3"),
            "params.yaml:clean.val_fraction",
        ),
        (lambda: edit(Path("params.yaml"), "clean:", "clean: {}\nx:"), "params.yaml:clean."),
        (lambda: Path("params.yaml").write_text("{", "utf-8"), "params.yaml"),
        (lambda: Path("params.yaml").unlink(), "params.yaml"),
        (lambda: edit(Path("pipeline/documents/shards.py"), '"""', '"""An edit. '), "pipeline/documents/shards.py"),
        (lambda: Path("pipeline/documents/new.py").write_text("X = 1\n"), "pipeline/documents/new.py"),
        (lambda: Path("pipeline/documents/shards.py").unlink(), "pipeline/documents/shards.py"),
        (lambda: edit(Path("stages/clean.py"), '"""', '"""An edit. '), "stages/clean.py"),
        (lambda: Path("data/raw/part-00000.parquet").write_bytes(b"other"), "data/raw/part-00000.parquet"),
    ],
)
def test_an_input_that_changes_while_a_stage_runs_fails_it_in_words(
    project: Path, meanwhile: object, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as left:
        run_clean(meanwhile)
    assert left.value.exit_code == 2
    said = capsys.readouterr().err
    assert named in said and "changed while the stage ran" in said
    assert not Path("reports/clean.json").exists()


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda: edit(Path("params.yaml"), "max_tokens: 2500000", "max_tokens: 1"),  # another stage's
        lambda: edit(Path("params.yaml"), "clean:", "# a remark\nclean:"),
        lambda: Path("pipeline/clean/__pycache__").mkdir(exist_ok=True),
        lambda: Path("pipeline/clean/.rules.py.swp").write_bytes(b"x"),
        lambda: os.utime("pipeline/documents/shards.py", (1, 1)),
    ],
)
def test_what_cannot_change_the_result_may_change_while_a_stage_runs(project: Path, meanwhile: object) -> None:
    run_clean(meanwhile)
    assert Path("reports/clean.json").exists() and Path("reports/metrics/clean.json").exists()


def test_dvc_records_nothing_of_a_stage_whose_parameters_changed_meanwhile(tmp_path: Path) -> None:
    """As a person does it: `dvc repro` in one window, the next experiment prepared in another."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/__init__.py").write_text("")
    (tmp_path / "stages/clean.py").write_text(
        "import time\nfrom pathlib import Path\nfrom pipeline.stage import stage\n"
        "with stage('clean', Path('params.yaml')) as job:\n"
        "    Path('out').write_text('x')\n    Path('begun').touch()\n    time.sleep(3)\n"
        "    job.finish({}, wrote=[Path('out')], summary='done')\n"
    )
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text(
        f"stages:\n  clean:\n    cmd: {sys.executable} -m stages.clean\n    params: [clean]\n    outs: [out]\n"
    )
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    dvc = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "begun").exists() and dvc.poll() is None:
        time.sleep(0.05)
    edit(tmp_path / "params.yaml", "val_fraction: 0.02", "val_fraction: 0.3")
    _, said = dvc.communicate(timeout=60)
    assert dvc.returncode != 0 and "params.yaml:clean.val_fraction changed while the stage ran" in said
    assert not (tmp_path / "dvc.lock").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "data/x"), "data/x: the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "data/x"), "data/x: the file system is read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "data/x"), "data/x: permission denied"),
        (RuntimeError("arrow: IOError: No space left on device"), "the disk is full"),
    ],
)
def test_what_the_machine_refuses_is_told_in_words(
    project: Path, error: Exception, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(typer.Exit) as left:
        run_clean(fail)
    assert left.value.exit_code == 2 and f"error: clean: {words}" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(project: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_clean(lambda: 1 / 0)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_recognised_whatever_a_library_says(full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(full_disk)
    with pytest.raises(UserError, match="the disk is full"), files.written_whole(Path("model.pt")) as partial:
        torch.save({"weight": torch.zeros(1_000_000)}, partial)
    assert list(full_disk.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment_ends_a_stage_with_a_sentence(project: Path, number: signal.Signals) -> None:
    (project / "pipeline").rename(project / "code")  # what runs is the project's own
    for pause in (0.15, 0.6, 1.2, 5):
        running = subprocess.Popen(
            [sys.executable, "-m", "stages.clean"], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=project,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        time.sleep(pause)
        running.send_signal(number)
        _, said = running.communicate(timeout=60)
        assert "Traceback" not in said
        if running.returncode == 128 + number:
            assert f"stopped by {number.name}" in said
    assert running.returncode in (128 + number, 2)  # 2: the last has found the raw shard damaged before


def test_a_signal_inside_compiled_code_ends_a_stage_too(tmp_path: Path) -> None:
    (tmp_path / "wrapping.py").write_text(
        "import os, signal, stages\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "except SystemExit as error:\n    raise ValueError('as pydantic does it') from error\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = '-m'; import wrapping"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (143, "stopped by SIGTERM; run the same command again\n")


def _write(path: Path, text: str) -> None:
    with files.written_whole(path) as partial:
        partial.mkdir()
        for name in range(20):
            (partial / str(name)).write_text(text)
            time.sleep(0.005)


def test_two_writers_of_one_output_take_turns(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path / "out", text)) for text in "ab" * 3]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        contents = set()
        for name in range(20):
            try:
                contents.add((tmp_path / "out" / str(name)).read_text())
            except FileNotFoundError:  # between one and the next
                break
        time.sleep(0.01)
    assert [writer.exitcode for writer in writers] == [0] * 6
    assert len({(tmp_path / "out" / str(name)).read_text() for name in range(20)}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_writer_that_waits_too_long_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PATIENCE", 0.05)
    with (
        pytest.raises(UserError, match="another process is writing"),
        files.written_whole(tmp_path / "out") as partial,
        files.written_whole(tmp_path / "out"),
    ):
        partial.touch()
