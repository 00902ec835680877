"""The examples of docs/examples/, each whole, with what its page says, at a tiny size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_pipeline import git, metrics, new_clone, ran, run

ROOT = Path(__file__).parents[1]
STAGES = ["download", "clean", "tokenize", "train", "evaluate", "export"]


@pytest.fixture
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A clone with the tiny configuration, but for what the examples choose themselves."""
    project = new_clone(tmp_path / "project")
    own = ["prompts: [Once upon a time], "]
    own += ["download: {documents: 300}\n"] if request.function is not test_own_tokenizer else ["vocab_size: 400, "]
    config = project / "configs/config.yaml"
    for each in own:
        assert each in config.read_text("utf-8")
        config.write_text(config.read_text("utf-8").replace(each, ""), "utf-8")
    return project


def page(name: str) -> str:
    return (ROOT / "docs/examples" / f"{name}.md").read_text(encoding="utf-8")


def run_python_of(name: str, project: Path, as_file: str, less: tuple[str, str] = ("", "")) -> None:
    """Run the page's Python there, with one thing made smaller."""
    assert f"uv run python {as_file}" in page(name) and f"Save it as `{as_file}`" in page(name)
    (code,) = re.findall(r"```python\n(.*?)```", page(name), re.DOTALL)
    assert less[0] in code
    (project / as_file).write_text(code.replace(*less) if less[0] else code, encoding="utf-8")
    subprocess.run([sys.executable, as_file], cwd=project, check=True)


def train(example: str, project: Path, *overrides: str) -> str:
    settings = [f"+example={example}", "model.block_size=64", "train.global_batch_size=8", *overrides]
    return run(project, "dvc", "exp", "run", *(part for each in settings for part in ("-S", each)))


@pytest.mark.timeout(300)
def test_chinese_stories(project: Path) -> None:
    """From own text of the same kind, in place of the Hub's."""
    assert "uv run dvc exp run -S +example=chinese_stories -S download=local" in page("chinese-stories")
    heroes, places, things = (
        ("小猫", "小狗", "兔子", "小鸟", "老虎"),
        ("森林里", "河边", "山上", "村庄里"),
        ("苹果", "风筝", "小船"),
    )
    stories = [
        f"从前，{place}有一只可爱的{hero}。有一天，它找到了一个{thing}，心里非常高兴。它把{thing}送给了第{i}个朋友，大家一起唱歌跳舞。"
        for i, (hero, place, thing) in enumerate(
            (hero, place, thing) for _ in range(5) for hero in heroes for place in places for thing in things
        )
    ]
    (project / "data/own/stories.txt").write_text("\n".join(stories), encoding="utf-8")
    own = ("download=local", "download.path=data/own/stories.txt", "tokenizer.vocab_size=400", "clean.val_fraction=0.1")
    assert ran(train("chinese_stories", project, *own)) == STAGES
    assert metrics(project, "clean")["documents_out"] == 300
    report = (project / "reports/report.html").read_text(encoding="utf-8")
    assert all(prompt in report for prompt in ("有一天，小猫", "在一个小村庄里")), "it continues the page's beginnings"
    assert (project / "models/hf/model.safetensors").is_file()


@pytest.mark.timeout(300)
def test_code(project: Path) -> None:
    run_python_of("code", project, "data/own/code.py", ('rglob("*.py")', 'glob("a*.py")'))
    seen = run(project, "pipeline.cli", "preview", "data/own/code.jsonl")
    assert "import" in seen
    ran_stages = ran(train("code", project, "tokenizer.vocab_size=400", "clean.val_fraction=0.3"))
    assert ran_stages == STAGES
    first = json.loads((project / "data/own/code.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert "\n    " in first["text"], "indentation is kept"
    assert (project / "models/hf/model.safetensors").is_file()


@pytest.mark.timeout(300)
def test_own_tokenizer(project: Path) -> None:
    run(project, "dvc", "repro", "clean")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "clean")
    run_python_of("own-tokenizer", project, "data/own/tokenizer.py", ("vocab_size=2048", "vocab_size=500"))
    assert ran(train("own_tokenizer", project)) == STAGES[2:]
    report = metrics(project, "tokenize")
    assert report["tokenizer"]["lossless"] and report["tokenizer"]["kind"] == "pretrained"
    kind = json.loads((project / "data/tokenizer/tokenizer.json").read_text(encoding="utf-8"))["model"]["type"]
    assert kind == "Unigram"
    assert "bits per byte" in run(project, "pipeline.cli", "compare")
