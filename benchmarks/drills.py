"""Failure drills: a tiny pipeline is disturbed in every way we know, then run again: `python -m benchmarks.drills`.

What must hold each time: nothing half-written stands where a whole output belongs, the process ends by itself (with
words and exit code 2 where it refuses, never a traceback), and the same command, run again without the disturbance,
ends with the bytes of a run that nothing disturbed.

    python -m benchmarks.drills --kills 50 --seed 0          # all of them, some minutes
    python -m benchmarks.drills --only kill --only damaged
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import yaml

from pipeline import console
from pipeline.hashing import file_sha256, tree_md5
from tests.test_pipeline import new_clone
from tests.tracking.wandb_server import WandbServer

STAGES = ("download", "clean", "tokenize", "train", "evaluate", "export")
SECONDS = 120.0  # for any one command at this size; more is a hang
_RACE = 60.0  # seconds in which a training whose other rank was killed must end


class LostError(AssertionError):
    """Something that must hold does not."""


@dataclass
class Project:
    """A clone with a tiny configuration in which every stage has run; what each stage wrote, by digest."""

    folder: Path
    outs: dict[str, list[str]]  # of each stage: what is the same in every run (reports have times in them)
    digests: dict[str, str] = field(default_factory=dict)  # of each of these outputs

    @classmethod
    def make(cls, folder: Path) -> "Project":
        new_clone(folder)
        described = yaml.safe_load((folder / "dvc.yaml").read_text("utf-8"))["stages"]
        outs = {stage: [o for o in described[stage]["outs"] if o.startswith(("data/", "models/"))] for stage in STAGES}
        outs["evaluate"] = described["evaluate"]["metrics"]  # all that it writes but pictures and pages
        project = cls(folder, outs)
        project.whole(project.start("dvc", "repro"))
        project.digests = {out: digest(folder / out) for stage in STAGES for out in outs[stage]}
        return project

    def copy(self, into: Path) -> "Project":
        """Another folder in the same state; links and the cache as they are."""
        shutil.copytree(self.folder, into, symlinks=True, dirs_exist_ok=True)
        return Project(into, self.outs, self.digests)

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[str]":
        """A Python module in the folder, in a process group of its own."""
        settings = {
            **{**os.environ, "PYTHONPATH": "", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            **{"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])},
            **environment,
        }
        return subprocess.Popen(
            [sys.executable, "-m", *command], cwd=self.folder, env=settings, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def stage(self, name: str, **environment: str) -> "subprocess.Popen[str]":
        return self.start(f"stages.{name}", **environment)

    def clear(self, stage: str) -> None:
        """As DVC does before it runs a stage: its outputs are gone. What training resumes from goes too."""
        for out in self.outs[stage]:
            path = self.folder / out
            path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, ignore_errors=True)
        if stage == "train":
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def whole(self, process: "subprocess.Popen[str]") -> None:
        """Wait; raises LostError unless it ends well."""
        code, output = ended(process)
        if code:
            raise LostError(f"exit code {code}: {output[-2000:]}")

    def refused(self, process: "subprocess.Popen[str]", words: str = "error: ") -> str:
        """Wait; raises LostError unless it ends with exit code 2 and these words."""
        code, output = ended(process)
        if code != 2 or words not in output:
            raise LostError(f"exit code {code} in place of 2 with {words!r}: {output[-2000:]}")
        return output

    def nothing_half(self, stage: str) -> None:
        """Raises LostError where an output is there and is not the whole one."""
        for out in self.outs[stage]:
            if (self.folder / out).exists() and digest(self.folder / out) != self.digests[out]:
                raise LostError(f"{out} is there and is not what a whole run writes")

    def same(self, stage: str) -> None:
        """Raises LostError unless the outputs are those of the undisturbed run, and nothing lies beside them."""
        for out in self.outs[stage]:
            if not (self.folder / out).exists() or digest(self.folder / out) != self.digests[out]:
                raise LostError(f"{out} is not what an undisturbed run writes")
        for place in ("data", "models", "reports"):
            known = {Path(out).name for outs in self.outs.values() for out in outs}
            beside = {p.name for p in (self.folder / place).iterdir() if p.is_dir()} - known - {"own"}
            if place != "reports" and beside:
                raise LostError(f"{place} also holds {', '.join(sorted(beside))}")

    def again(self, stage: str) -> None:
        """The same command without a disturbance ends as if there had been none."""
        self.whole(self.stage(stage))
        self.same(stage)


def digest(path: Path) -> str:
    return file_sha256(path) if path.is_file() else tree_md5(path)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and output; raises LostError for a hang or a traceback."""
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise LostError(f"it hangs: {output[-2000:]}") from None
    if re.search("^Traceback ", output, re.M):  # at a line's beginning: torch logs some that it has dealt with
        raise LostError(f"a traceback: {output[-3000:]}")
    return process.returncode, output


# --- the drills: each yields what came of one disturbance, in a few words ------------------------------------------


@dataclass(frozen=True)
class Setting:
    project: Project
    random: random.Random
    count: int  # of random disturbances
    place: Path  # for what else a drill needs
    seconds: dict[str, float]  # that each stage takes


def kill(setting: Setting) -> Iterator[str]:
    """kill -9 of the whole process group at a random moment, every stage in turn."""
    for n in range(setting.count):
        stage = STAGES[n % len(STAGES)]
        project = setting.project
        project.clear(stage)
        process = project.stage(stage)
        time.sleep(setting.random.uniform(0, setting.seconds[stage]))
        over = process.poll() is not None
        os.killpg(process.pid, signal.SIGKILL) if not over else None
        process.communicate()
        project.nothing_half(stage)
        project.again(stage)
        yield "was over" if over else "killed"


def signals(setting: Setting) -> Iterator[str]:
    """SIGINT and SIGTERM, once and twice, at a random moment of every stage."""
    for stage in STAGES:
        for which in (signal.SIGINT, signal.SIGTERM):
            for times in (1, 2):
                project = setting.project
                project.clear(stage)
                process = project.stage(stage)
                time.sleep(setting.random.uniform(0.3, 0.9) * setting.seconds[stage])
                for _ in range(times):
                    if process.poll() is None:
                        process.send_signal(which)
                    time.sleep(0.05)
                try:
                    process.communicate(timeout=SECONDS)
                except subprocess.TimeoutExpired:
                    raise LostError(f"{stage} does not end at {which.name}") from None
                project.nothing_half(stage)
                project.again(stage)
                yield f"{which.name} {'once' if times == 1 else 'twice'}"


@contextmanager
def small_disk(setting: Setting) -> Iterator[Path]:
    place = setting.place / "disk"
    place.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(place)], capture_output=True).returncode:
        raise PermissionError("needs root, to mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def full_disk(setting: Setting) -> Iterator[str]:
    """A disk with room for a random part of what the stage writes, then one with room."""
    with small_disk(setting) as place:
        project = setting.project.copy(place / "project")
        for stage in STAGES:
            written = [f for out in project.outs[stage] for f in (project.folder / out).rglob("*")]
            needs = sum(f.stat().st_size for f in written)
            project.clear(stage)
            used = shutil.disk_usage(place).used
            remount(place, f"size={used + 4096 + int(max(needs, 20_000) * setting.random.uniform(0, 0.6))}")
            code, output = ended(project.stage(stage, TMPDIR="/tmp"))
            project.nothing_half(stage)
            remount(place, "size=2g")
            if code not in (0, 2) or (code == 2 and "full" not in output):
                raise LostError(f"{stage}: exit code {code}: {output[-1500:]}")
            project.again(stage)
            yield "refused in words" if code else "fitted"


def read_only(setting: Setting) -> Iterator[str]:
    """A project on a disk that cannot be written."""
    with small_disk(setting) as place:
        project = setting.project.copy(place / "project")
        for stage in STAGES:
            project.clear(stage)
            remount(place, "ro")
            try:
                project.refused(project.stage(stage, TMPDIR="/tmp"), "read-only")
            finally:
                remount(place, "rw")
            project.again(stage)
            yield "refused in words"


def damaged(setting: Setting) -> Iterator[str]:
    """Every file that a stage reads of another one's outputs: cut at a random place, then a random bit flipped."""
    described = yaml.safe_load((setting.project.folder / "dvc.yaml").read_text("utf-8"))["stages"]
    for stage in STAGES[1:]:
        inputs = [dep for dep in described[stage]["deps"] if dep.startswith(("data/", "models/"))]
        files = [f for dep in inputs for f in sorted((setting.project.folder / dep).rglob("*")) if f.is_file()]
        for path in files:
            for how in ("cut", "flipped"):
                project = setting.project.copy(setting.place / "damaged")
                victim = project.folder / path.relative_to(setting.project.folder)
                content = bytearray(victim.read_bytes())
                at = setting.random.randrange(max(1, len(content)))
                if how == "cut":
                    content = content[:at]
                elif content:
                    content[at] ^= 1 << setting.random.randrange(8)
                victim.write_bytes(content)
                project.clear(stage)
                code, output = ended(project.stage(stage))
                if code not in (0, 2):
                    raise LostError(f"{stage} with {victim.name} {how}: exit code {code}: {output[-1500:]}")
                shutil.rmtree(project.folder)
                yield f"{how}: {'refused in words' if code else f'read {victim.name}'}"


def repro_after_damage(setting: Setting) -> Iterator[str]:
    """A damaged output in the workspace, and damaged or deleted objects of DVC's cache: `dvc repro` makes it good."""
    for how in ("output flipped", "cache object flipped", "cache object deleted"):
        project = setting.project.copy(setting.place / "repro")
        if how == "output flipped":
            _flip(project.folder / "models/litgpt/lit_model.pth", setting.random)
        else:
            objects = sorted(f for f in (project.folder / ".dvc/cache/files/md5").rglob("*") if f.is_file())
            for victim in setting.random.sample(objects, len(objects) // 3):
                victim.unlink() if "deleted" in how else _flip(victim, setting.random)
            project.clear("clean")
        project.whole(project.start("dvc", "repro"))
        for stage in STAGES:
            project.same(stage)
        shutil.rmtree(project.folder)
        yield how


def _flip(path: Path, drawn: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
    path.chmod(0o644)  # the cache's are write-protected
    path.write_bytes(content)


def two_at_once(setting: Setting) -> Iterator[str]:
    """Two `dvc repro` in one project, then two trainings on one folder of checkpoints."""
    project = setting.project.copy(setting.place / "twice")
    project.clear("train")
    both = [project.start("dvc", "repro") for _ in range(2)]
    codes = sorted(ended(process)[0] for process in both)
    if codes[0] != 0:
        raise LostError(f"neither of two dvc repro ended well: {codes}")
    project.same("train")
    yield f"two dvc repro: {'one waits or refuses' if codes[1] else 'both end well'}"
    project.clear("train")
    both = [project.stage("train") for _ in range(2)]
    codes = sorted(ended(process)[0] for process in both)
    project.nothing_half("train")
    if codes not in ([0, 0], [0, 2]):
        raise LostError(f"two trainings at once: exit codes {codes}")
    project.again("train")
    shutil.rmtree(project.folder)
    yield f"two trainings: {'one refuses' if codes[1] else 'both end well'}"


def clock(setting: Setting) -> Iterator[str]:
    """The wall clock runs backwards and jumps by years while each stage runs."""
    hook = setting.place / "clock"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import random, time\n"
        "_real, _random = time.time, random.Random(1)\n"
        "time.time = lambda: 2e9 - _real() + _random.choice([0.0, 0.0, 0.0, -1e8, 1e8])\n"
    )
    for stage in STAGES:
        setting.project.clear(stage)
        setting.project.whole(setting.project.stage(stage, PYTHONPATH=str(hook)))
        setting.project.same(stage)
        yield "same bytes"


def params_changed(setting: Setting) -> Iterator[str]:
    """A parameter of the stage is edited while it runs: nothing may be recorded."""
    for stage, key in zip(
        STAGES, ("documents", "min_bytes", "vocab_size", "max_tokens", "max_new_tokens", "name"), strict=True
    ):
        project = setting.project.copy(setting.place / "edited")
        path = project.folder / "params.yaml"
        before = path.read_text("utf-8")
        raw = yaml.safe_load(before)
        section = raw["tokenizer" if stage == "tokenize" else stage]
        key = key if key in section else next(k for k, v in section.items() if isinstance(v, int | str))
        section[key] = section[key] + 1 if isinstance(section[key], int) else "another"
        project.clear(stage)
        process = project.stage(stage)
        assert process.stdout is not None
        process.stdout.readline()  # it has read its parameters, and speaks of W&B
        path.write_text(yaml.safe_dump(raw), "utf-8")
        code, output = ended(process)
        if code != 2 or "changed while the stage ran" not in output:
            raise LostError(f"{stage}: exit code {code}: {output[-1500:]}")
        path.write_text(before, "utf-8")
        project.again(stage)
        shutil.rmtree(project.folder)
        yield "refused in words"


def workers(setting: Setting) -> Iterator[str]:
    """A process that reads tokens is killed, then one of two ranks: the training ends with words and goes on later."""
    for what, change, words in (
        ("reader killed", {"num_workers": 2}, "num_workers"),
        ("rank killed", {"devices": 2, "strategy": "ddp"}, ""),
    ):
        project = setting.project.copy(setting.place / "workers")
        path = project.folder / "params.yaml"
        raw = yaml.safe_load(path.read_text("utf-8"))
        raw["train"] |= change | {"max_tokens": 2_000_000}
        path.write_text(yaml.safe_dump(raw), "utf-8")
        project.clear("train")
        process = project.stage("train")
        begun = time.monotonic()
        while not (children := _children(process.pid)) or not any(
            (project.folder / "checkpoints").rglob("metrics.csv")
        ):
            if process.poll() is not None or time.monotonic() - begun > SECONDS:
                raise LostError(f"{what}: it does not begin: {ended(process)[1][-1500:]}")
            time.sleep(0.1)
        os.kill(children[-1], signal.SIGKILL)
        begun = time.monotonic()
        code, output = ended(process)
        took = time.monotonic() - begun
        if code == 0 or words not in output or took > _RACE:
            raise LostError(f"{what}: exit code {code} after {took:.0f} s: {output[-1500:]}")
        shutil.rmtree(project.folder)
        yield f"{what}: ends after {took:.0f} s"


def _children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    names = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in found if Path(f"/proc/{child}").exists()}
    return [
        int(child) for child, line in names.items() if b"resource_tracker" not in line and b"forkserver" not in line
    ]


def wandb_dies(setting: Setting) -> Iterator[str]:
    """The W&B server dies at a random moment of every stage: the stage ends well all the same."""
    for stage in STAGES:
        setting.project.clear(stage)
        with WandbServer() as server:
            environment = {**server.environment, "WANDB_MODE": "online"}
            process = setting.project.stage(stage, **environment)
            time.sleep(setting.random.uniform(0.2, 0.9) * setting.seconds[stage])
            server.fault(500)
            setting.project.whole(process)
        setting.project.same(stage)
        yield "ends well"


DRILLS: tuple[Callable[[Setting], Iterator[str]], ...] = (
    kill, signals, full_disk, read_only, damaged, repro_after_damage, two_at_once, clock, params_changed, workers,
    wandb_dies,
)  # fmt: skip


def main(
    kills: Annotated[int, typer.Option(help="Random moments for kill -9, over all stages.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the random moments and places.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(d.__name__ for d in DRILLS)}.")] = None,
) -> None:
    """Print a Markdown table; exit code 1 where something was lost."""
    failed = False
    with tempfile.TemporaryDirectory(prefix="drills-") as place:
        project = Project.make(Path(place) / "project")
        seconds = {}
        for stage in STAGES:
            project.clear(stage)
            begun = time.monotonic()
            project.again(stage)
            seconds[stage] = time.monotonic() - begun
        print("| drill | what was done | what came of it | lost |")
        print("| --- | --- | --- | --- |")
        for drill in DRILLS:
            if only and drill.__name__ not in only:
                continue
            setting = Setting(project, random.Random(f"{seed}/{drill.__name__}"), kills, Path(place), seconds)
            counts: Counter[str] = Counter()
            lost = "nothing"
            begun = time.monotonic()
            try:
                counts.update(drill(setting))
            except PermissionError as error:
                lost = f"not run: {error}"
            except LostError as error:
                failed, lost = True, f"**{' '.join(str(error).split())}**"
            what = ", ".join(f"{count} × {outcome}" for outcome, count in sorted(counts.items()))
            took = console.duration(time.monotonic() - begun)
            print(
                f"| {drill.__name__} | {' '.join((drill.__doc__ or '').split())} | {what} ({took}) | {lost} |",
                flush=True,
            )
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
