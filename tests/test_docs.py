"""The documentation: it builds without a warning, its page of parameters is up to date, its commands exist."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main
import yaml

from pipeline.cli.app import app
from pipeline.cli.compose import compose

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (uv sync --group docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8").replace("!!python", ""))["nav"]
    named = {
        page
        for section in pages
        for value in section.values()
        for page in ([value] if isinstance(value, str) else value)
    }
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert there <= named, "a page that the navigation does not name"
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))', page.read_text("utf-8"))
        assert not fetched, f"{page.name} fetches {fetched}"


def test_the_page_of_parameters_is_what_their_descriptions_give() -> None:
    command = [sys.executable, "docs/parameters.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)})
    assert done.stdout == (ROOT / "docs/parameters.md").read_text("utf-8"), (
        "python docs/parameters.py > docs/parameters.md"
    )


# What runs the commands of a page, or those that begin so: the words stand in that file, or it reads the page.
RUN_BY = {
    "sharing.md": "tests/test_remotes.py",
    "own-data.md": "tests/download/test_own_text.py",
    "experiments.md": "tests/test_pipeline.py",
    "chinese-stories.md": "tests/test_examples.py",
    "code.md": "tests/test_examples.py",
    "own-tokenizer.md": "tests/test_examples.py",
    "dvc repro": "tests/test_pipeline.py",
    "dvc exp": "tests/test_pipeline.py",
    "dvc metrics": "tests/test_pipeline.py",
    "dvc plots": "tests/test_pipeline.py",
    "moe chat": "tests/cli/test_cli.py",
    "moe doctor": "tests/cli/test_doctor.py",
    "moe fetch": "tests/cli/test_cli.py",  # needs W&B: there a server of our own
    "moe generate": "tests/cli/test_cli.py",
    "moe import": "tests/cli/test_cli.py",
    "moe mirror": "tests/cli/test_cli.py",  # needs W&B
    "moe plan": "tests/cli/test_cli.py",
    "moe push": "tests/cli/test_cli.py",  # needs the Hub: there a server of our own
    "moe serve": "tests/serve/test_command.py",
    "moe sweep": "tests/test_pipeline.py",
    "moe use": "tests/download/test_own_text.py",
}
QUEUE = "dvc queue"  # what dvc exp run --queue queued is started as moe sweep starts its own


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command line of this project in a block of code, by where it stands."""
    for path in PAGES:
        for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", path.read_text("utf-8"), re.S):
            for line in re.sub(r"\s#.*", "", block.replace("\\\n", " ")).replace(" && ", "\n").splitlines():
                words = shlex.split(line.partition(" | ")[2] or line)
                while words and (words[0] in ("uv", "run") or "=" in words[0] or words[0] == "$"):
                    words = words[1:]
                if words and words[0] in ("moe", "dvc", "python"):
                    yield f"{path.name}: {line.strip()}", words


@pytest.mark.parametrize(("place", "words"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_command_of_the_docs_exists(place: str, words: list[str], tmp_path: Path) -> None:
    if words[0] == "moe":
        command = typer.main.get_command(app).commands[words[1]]  # type: ignore[attr-defined]
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.partition("=")[0] for word in words[2:] if word.startswith("-") and len(word) > 1}
        assert given <= options, f"{given - options} is no option of moe {words[1]}"
    elif words[0] == "python" and words[1] == "-m":
        assert find_spec(words[2]) is not None
    page = place.partition(":")[0]
    if words[0] != "python" and words[:2] != QUEUE.split():
        tests = [RUN_BY[name] for name in (page, " ".join(words[:2])) if name in RUN_BY]
        texts = [(ROOT / test).read_text("utf-8") for test in tests]
        assert any(f'"{words[1]}"' in text or page in text for text in texts), f"no test of {tests} runs it"
    overrides = [following for word, following in pairwise(words) if word in ("-S", "--set-param")]
    if overrides and not any("…" in override or "," in override.partition("=")[2] for override in overrides):
        compose(tmp_path / "params.yaml", ROOT / "configs", overrides)
