"""docs/sharing.md: each of its commands is run as it stands there, on a project whose outputs are a few bytes.

A folder and moto's S3 are the remotes, a bare repository is the place that both people push to. What stands for
addresses on the page is replaced; `uv run COMMAND` runs the command in the environment of the tests.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import s3_server

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/sharing.md").read_text("utf-8")
SECTIONS = {  # heading → the commands below it, a text for each block
    part.partition("\n")[0]: re.findall(r"```bash\n(.*?)```", part, re.DOTALL) for part in PAGE.split("\n## ")[1:]
}


class Desk:
    """A place with people's folders, and what they share: `origin`, a bare repository, and `remote`, a folder."""

    def __init__(self, place: Path) -> None:
        self.place, self.origin, self.remote = place, place / "moe-stories.git", place / "remote"
        self.names = {
            "https://git.example.org/you/moe-stories.git": str(self.origin),
            "/mnt/team/moe": str(self.remote),
        }
        programs = place / "programs"
        programs.mkdir()
        uv = programs / "uv"
        uv.write_text('#!/bin/sh\nif [ "$1" = run ]; then shift; exec "$@"; fi\n', encoding="utf-8")
        uv.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DVC_", "GIT_"))}
        (place / "gitconfig").write_text(
            "[user]\n name = you\n email = you@example.org\n[init]\n defaultBranch = main\n", encoding="utf-8"
        )
        self.environment = kept | {
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "GIT_CONFIG_GLOBAL": str(place / "gitconfig"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_GLOBAL_CONFIG_DIR": str(place / "dvc"),
            "DVC_SITE_CACHE_DIR": str(place / "site"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
        }

    def run(self, commands: str, where: Path, succeeds: bool = True, **environment: str) -> str:
        """What the commands say, both streams together; DVC's questions are answered with yes."""
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", commands],
            cwd=where,
            env=self.environment | environment,
            input="y\n" * 9,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert (done.returncode == 0) == succeeds, f"{commands}\nexit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def page(self, heading: str, where: Path, block: int = 0, **environment: str) -> str:
        """Run a block of the page's commands below a heading."""
        commands = SECTIONS[heading][block]
        for name, value in self.names.items():
            commands = commands.replace(name, value)
        assert "example.org" not in commands
        return self.run(commands, where, **environment)

    def colleague(self, name: str, **environment: str) -> Path:
        """The clone of somebody who followed the page."""
        home = self.place / name
        home.mkdir()
        said = self.page("The colleague pulls", home, **environment)
        assert said.count("Data and pipelines are up to date.") == 2 and "Running stage" not in said
        return home / "moe-stories"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def mine(desk: Desk, clone: Path) -> Path:
    """A clone of `origin` in which pretraining has run and finetuning has not; nothing of the run is committed."""
    folder = desk.place / "mine"
    shutil.copytree(clone, folder, symlinks=True)
    for stage in yaml.safe_load((folder / "finetune/dvc.yaml").read_text("utf-8"))["stages"].values():
        for out in [*stage["outs"], *stage.get("metrics", [])]:
            path = folder / "finetune" / stage.get("wdir", ".") / out
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for lock in ("dvc.lock", "finetune/dvc.lock"):
        (folder / lock).unlink()
    shutil.rmtree(folder / ".dvc/cache")
    desk.run(f"git init -q --bare {desk.origin}", desk.place)
    desk.run(
        f"git add -A && git commit -qm Project && git branch -M main && git remote add origin {desk.origin} && "
        "git push -qu origin main && dvc commit -f dvc.yaml",
        folder,
    )
    return folder


@pytest.fixture
def shared(desk: Desk, mine: Path) -> Path:
    """`mine` after the page's first commands."""
    assert "files pushed" in desk.page("You push", mine)
    return mine


def outputs(folder: Path) -> dict[str, bytes]:
    """Content of what the stages of pretraining have written."""
    found = {}
    for stage in yaml.safe_load((folder / "dvc.yaml").read_text("utf-8"))["stages"].values():
        for out in [*stage["outs"], *stage.get("metrics", [])]:
            path = folder / out
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            assert files, f"{out} is missing"
            found |= {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    return found


def cached(folder: Path) -> set[str]:
    return {path.name for path in (folder / ".dvc/cache/files").rglob("*") if path.is_file()}


def test_a_colleague_pulls_from_a_folder_and_nothing_runs(desk: Desk, shared: Path) -> None:
    theirs = desk.colleague("colleague")
    assert outputs(theirs) == outputs(shared)
    assert desk.run("git status --porcelain", theirs) == ""


def test_a_pull_of_everything_fails_as_the_page_says_where_nobody_has_finetuned(desk: Desk, shared: Path) -> None:
    theirs = desk.place / "everything"
    desk.run(f"git clone -q {desk.origin} {theirs}", desk.place)
    said = desk.run("dvc pull", theirs, succeeds=False)
    assert "Checkout failed for following targets:" in said and "data/instruct" in said
    assert outputs(theirs) == outputs(shared)


def test_without_the_remote_the_colleague_is_told_what_is_missing(desk: Desk, shared: Path) -> None:
    theirs = desk.place / "without"
    desk.run(f"git clone -q {desk.origin} {theirs}", desk.place)
    desk.run(f"dvc remote modify shared url {desk.place / 'absent'}", theirs)
    assert "missing" in desk.run("dvc pull dvc.yaml", theirs, succeeds=False)


def test_keys_for_s3_come_from_a_profile_or_the_environment_and_stay_out_of_git(desk: Desk, mine: Path) -> None:
    with s3_server.serving("bucket") as keys:
        desk.names["https://s3.example.org"] = keys.pop("AWS_ENDPOINT_URL")
        (desk.place / "credentials").write_text(
            "[team]\n" + "".join(f"{name.lower()} = {value}\n" for name, value in keys.items()), encoding="utf-8"
        )
        assert "files pushed" in desk.page(
            "S3", mine, AWS_SHARED_CREDENTIALS_FILE=str(desk.place / "credentials"), HOME=str(desk.place)
        )
        desk.run("git add -A && git commit -qm 'On S3' && git push -q", mine)
        assert "profile" not in desk.run("git show HEAD:.dvc/config", mine)
        assert ".dvc/config.local" not in desk.run("git ls-files", mine)

        assert outputs(desk.colleague("colleague", **keys)) == outputs(mine)
        nobody = desk.place / "nobody"
        desk.run(f"git clone -q {desk.origin} {nobody}", desk.place)
        assert "redentials" in desk.run("dvc pull dvc.yaml", nobody, succeeds=False, HOME=str(desk.place))


def test_a_colleague_takes_an_experiment(desk: Desk, shared: Path) -> None:
    desk.names["NAME"] = "fewer"
    desk.run("dvc exp run -n fewer -S download.documents=40 download", shared)  # the one stage that needs no real data
    desk.page("Experiments", shared, block=0)
    theirs = desk.colleague("colleague")
    assert "fewer" in desk.run("dvc exp list origin", theirs)
    before = outputs(theirs)
    desk.page("Experiments", theirs, block=1)
    assert outputs(theirs) == outputs(shared) != before
    assert "documents: 40" in (theirs / "params.yaml").read_text("utf-8")
    assert "download" not in yaml.safe_load(desk.run("dvc status dvc.yaml --json", theirs))
    desk.run("git switch -q main && dvc checkout dvc.yaml", theirs)
    assert outputs(theirs) == before
    said = desk.run("dvc exp apply fewer", theirs, succeeds=False)
    assert "Checkout failed for following targets:" in said and outputs(theirs) == outputs(shared)


def test_another_project_imports_the_data_and_keeps_up_with_them(desk: Desk, shared: Path) -> None:
    other = desk.place / "other"
    desk.run(f"git init -q {other} && cd {other} && dvc init -q && mkdir data", desk.place)
    desk.page("The data alone, in another project", other)
    assert (other / "data/stories/file").read_bytes() == (shared / "data/raw/file").read_bytes()
    assert (other / "stories-model/file").read_bytes() == (shared / "models/hf/file").read_bytes()
    desk.run("git add -A && git commit -qm Stories", other)
    assert "data/stories/file" not in desk.run("git ls-files", other)

    (shared / "data/raw/file").unlink()
    (shared / "data/raw/file").write_text("newer", encoding="utf-8")
    desk.run("dvc commit -f download && dvc push -q && git commit -qam Newer && git push -q", shared)
    desk.run("dvc update data/stories.dvc", other)
    assert (other / "data/stories/file").read_text("utf-8") == "newer"
    assert "data/stories.dvc" in desk.run("git diff --name-only", other)


def test_gc_removes_from_the_cache_what_the_page_says(desk: Desk, shared: Path) -> None:
    first = cached(shared)

    def becomes(text: str) -> set[str]:
        (shared / "data/raw/file").unlink()
        (shared / "data/raw/file").write_text(text, encoding="utf-8")
        before = cached(shared)
        desk.run("dvc commit -f download", shared)
        return cached(shared) - before

    unnamed = becomes("a version that nothing names")
    committed = becomes("the last version")
    desk.run("git commit -qam Second", shared)
    lines = SECTIONS["Room on the disk"][0].splitlines()
    assert len(lines) == 3
    said = desk.run(lines[0], shared)
    assert cached(shared) == first | unnamed | committed and "Removing" in said
    desk.run(lines[1], shared)
    assert cached(shared) == first | committed
    now = outputs(shared)
    desk.run(lines[2], shared)
    assert len(first - cached(shared)) == 2 and committed < cached(shared)  # the folder data/raw and its file
    assert outputs(shared) == now

    desk.run("git checkout -q HEAD~1", shared)
    assert "data/raw" in desk.run("dvc checkout dvc.yaml", shared, succeeds=False)  # gone from the cache
    desk.run("dvc pull dvc.yaml", shared)  # but it was pushed
    assert first <= cached(shared)


def test_hard_links_take_no_room_a_second_time(desk: Desk, mine: Path) -> None:
    before = outputs(mine)
    assert {(mine / name).stat().st_nlink for name in before} == {1}
    desk.page("Room on the disk", mine, block=1)
    assert outputs(mine) == before
    assert {(mine / name).stat().st_nlink for name in before} == {2}
    assert not any((mine / name).stat().st_mode & 0o222 for name in before)
    desk.run("dvc exp run -S download.documents=40 download", mine)  # a stage writes where read-only files were
    assert (mine / "data/raw/manifest.json").stat().st_nlink == 2


def test_each_block_of_the_page_is_run_here() -> None:
    """A new block needs a test of its own."""
    assert {heading: len(blocks) for heading, blocks in SECTIONS.items() if blocks} == {
        "You push": 1,
        "The colleague pulls": 1,
        "S3": 1,
        "Experiments": 2,
        "The data alone, in another project": 1,
        "Room on the disk": 2,
    }
