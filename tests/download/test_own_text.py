"""Own text with DVC itself: Git gets none of it, a choice stays, other workspaces and clones have it."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.test_pipeline import git, new_clone, ran, run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = new_clone(tmp_path_factory.mktemp("own") / "project")
    config = folder / "configs/config.yaml"
    config.write_text(config.read_text("utf-8").replace("download: {documents: 300}\n", ""), "utf-8")
    run(folder, "pipeline.cli", "compose")
    git(folder, "commit", "-qam", "bundled as it is")
    lines = [json.dumps({"text": f"Once a needle-in-haystack fox named {n} met a hen."}) for n in range(40)]
    (folder / "stories.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def in_git(folder: Path) -> bool:
    """Whether any object of any commit, experiments and stashes included, holds the text."""
    everything = ["git", "cat-file", "--batch-all-objects", "--batch"]
    return (
        f"needle-in-haystack fox named {7} met".encode()
        in subprocess.run(everything, cwd=folder, capture_output=True).stdout
    )


@pytest.mark.timeout(600)
def test_own_text_stays_out_of_git_and_the_choice_stays(project: Path, tmp_path: Path) -> None:
    chosen = ["-S", "download=local", "-S", "download.path=stories.jsonl"]
    refused = run(project, "dvc", "exp", "run", *chosen, "download", check=False)
    assert "would commit stories.jsonl to Git" in refused and "Traceback" not in refused
    assert not in_git(project)

    (project / "stories.jsonl").rename(project / "data/own/stories.jsonl")
    told = run(project, "pipeline.cli", "use", "download=local", "download.path=data/own/stories.jsonl")
    assert "git add configs/config.yaml configs/download/own.yaml params.yaml" in told
    assert ran(run(project, "dvc", "exp", "run", "download")) == ["download"]
    assert ran(run(project, "dvc", "exp", "run", "-S", "train.max_tokens=4096", "download")) == []  # the same text
    assert not in_git(project)

    # `dvc add` brings it to the workspaces of queued experiments and to clones.
    run(project, "dvc", "add", "data/own/stories.jsonl")
    git(project, "add", "data", "configs")
    apart = run(project, "dvc", "exp", "run", "--temp", "-S", "download.seed=3", "download")
    assert "40 documents" in apart
    with (project / ".dvc/config").open("a", encoding="utf-8") as config:
        config.write(f"['remote \"store\"']\n    url = {tmp_path / 'store'}\n")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "own text")
    run(project, "dvc", "push", "-r", "store", "data/own/stories.jsonl")
    git(tmp_path, "clone", "-q", str(project), "colleague")
    run(tmp_path / "colleague", "dvc", "pull", "-r", "store", "data/own/stories.jsonl")
    assert ran(run(tmp_path / "colleague", "dvc", "repro", "download")) == ["download"]
    assert not in_git(project) and not in_git(tmp_path / "colleague")
