"""dvc.yaml declares exactly what the stages import and read; the lint that says so finds planted faults."""

import ast
import shutil
from pathlib import Path

import pytest

from pipeline import lint

ROOT = Path(__file__).parent.parent


def test_the_project_declares_exactly_what_it_imports_and_reads():
    assert lint.problems(ROOT) == []


@pytest.fixture
def copy(tmp_path):
    for folder in ("pipeline", "stages"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    return tmp_path


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_an_import_inside_a_function_counts(copy):
    (copy / "pipeline" / "corpus" / "late.py").write_text("X = 1\n", encoding="utf-8")
    stage = copy / "stages" / "clean.py"
    stage.write_text(stage.read_text("utf-8") + "\n\ndef late():\n    from pipeline.corpus.late import X\n", "utf-8")
    assert "dvc.yaml: clean imports pipeline/corpus/late.py; add it to deps" in lint.problems(copy)


def test_a_dependency_that_nothing_imports_is_found(copy):
    replaced(copy / "dvc.yaml", "- stages/clean.py", "- stages/clean.py\n      - pipeline/cli.py")
    assert "dvc.yaml: clean declares pipeline/cli.py, which it does not import" in lint.problems(copy)


def test_a_section_that_a_stage_does_not_read_is_found(copy):
    replaced(copy / "dvc.yaml", "      - clean\n", "      - clean\n      - export\n")
    assert "dvc.yaml: clean declares params.export, never read" in lint.problems(copy)


def test_a_section_read_without_declaring_it_is_found(copy):
    stage = copy / "stages" / "clean.py"
    stage.write_text(stage.read_text("utf-8") + "\n\ndef peek(params):\n    return params.export\n", "utf-8")
    assert "dvc.yaml: clean reads params.export; add it to params" in lint.problems(copy)


@pytest.mark.parametrize(
    ("file", "old", "new", "key"),
    [
        ("corpus/tokenizer.py", "pattern(params.split_digits)", "pattern(True)", "tokenizer.split_digits"),
        # an attribute of that name elsewhere, or a string, is no reading of the parameter
        (
            "corpus/tokenizer.py",
            "pattern(params.split_digits)",
            "pattern(Regex.split_digits)",
            "tokenizer.split_digits",
        ),
        ("corpus/tokenizer.py", "pattern(params.split_digits)", "pattern('split_digits')", "tokenizer.split_digits"),
        ("corpus/near_duplicates.py", "self._params.threshold", "0.8", "clean.near_duplicates.threshold"),
    ],
)
def test_a_parameter_that_is_declared_but_read_by_no_stage_is_found(copy, file, old, new, key):
    replaced(copy / "pipeline" / file, old, new)
    assert lint.problems(copy) == [f"params.yaml: {key} is read by no stage that declares {key.split('.')[0]}"]


def test_a_stage_that_reads_what_follows_from_the_parameters_must_declare_it(copy):
    peek = "def peek(params):\n    return params.model.moe_layers\n\n\n@app.command()"
    replaced(copy / "stages" / "clean.py", "@app.command()", peek)
    assert "dvc.yaml: clean imports pipeline/derived.py; add it to deps" in lint.problems(copy)


def test_the_parameters_compute_no_results_themselves():
    """pipeline/params.py is declared by no stage, so its properties may only hand on what pipeline/derived.py says."""
    tree = ast.parse((ROOT / "pipeline" / "params.py").read_text("utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    properties = [f for f in functions if any(getattr(d, "id", "") == "property" for d in f.decorator_list)]
    assert len(properties) >= 4
    for function in properties:
        assert [ast.unparse(line) for line in function.body] == [f"return derived.{function.name}(self)"]


def test_editing_the_pictures_never_trains_again_and_editing_the_expert_layer_does():
    train = {path.relative_to(ROOT).as_posix() for path in lint.imported(ROOT / "stages" / "train.py", ROOT)}
    assert "pipeline/model/moe.py" in train
    assert not any(path.startswith("pipeline/evaluation/") for path in train)
