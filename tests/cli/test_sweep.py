"""moe sweep: the files of configs/sweep/ hold runs that would start; a wrong one is refused before any is queued."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import params
from pipeline.cli import sweep
from pipeline.cli.app import app
from pipeline.cli.compose import compose
from pipeline.errors import UserError
from pipeline.model import size

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return shutil.copytree(CONFIGS, tmp_path / "configs")


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml")))
def test_each_sweep_that_comes_along_has_several_runs_that_are_accepted(name: str) -> None:
    entries = sweep.entries(name, [], seeds=0, configs=CONFIGS)
    runs = [run for entry in entries for run in sweep.runs(entry)]
    assert len(runs) >= 3 and len({tuple(run) for run in runs}) == len(runs)


@pytest.mark.parametrize("name", ["experts", "top_k", "shape"])
def test_runs_that_are_said_to_compute_the_same_do(name: str, tmp_path: Path) -> None:
    work = []
    for run in [run for entry in sweep.entries(name, [], seeds=0, configs=CONFIGS) for run in sweep.runs(entry)]:
        compose(tmp_path / "params.yaml", CONFIGS, run)
        parameters = params.load(tmp_path / "params.yaml")
        count = size.count(parameters.model, parameters.tokenizer.vocab_size or 0)
        work.append(count.flops_per_token(parameters.train.block_size))
    assert max(work) < 1.03 * min(work), work


def test_values_and_seeds_are_multiplied(configs: Path) -> None:
    (configs / "sweep/two.yaml").write_text('- ["model.n_expert=2,4", model.router=sigmoid]\n- [train=cpu]\n')
    entries = sweep.entries("two", ["train.max_steps=9"], seeds=2, configs=configs)
    assert [" ".join(run) for entry in entries for run in sweep.runs(entry)] == [
        "model.n_expert=2 model.router=sigmoid train.max_steps=9 train.seed=1",
        "model.n_expert=2 model.router=sigmoid train.max_steps=9 train.seed=2",
        "model.n_expert=4 model.router=sigmoid train.max_steps=9 train.seed=1",
        "model.n_expert=4 model.router=sigmoid train.max_steps=9 train.seed=2",
        "train=cpu train.max_steps=9 train.seed=1",
        "train=cpu train.max_steps=9 train.seed=2",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- [model.n_expert=2,4]", "commas need quotes"),
        ("model.n_expert: 2", "a list of lists"),
        ("[]", "a list of lists"),
        ("- [model.n_expert=2", "is not valid YAML"),
        ("- [model.n_experts=2]", "n_experts"),
        ('- ["model.n_expert=8,1"]', "the run model.n_expert=1: model.n_expert_per_token: 2; allowed: 1 to n_expert"),
    ],
)
def test_a_wrong_sweep_is_refused_with_what_is_allowed(configs: Path, text: str, words: str) -> None:
    (configs / "sweep/mine.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        sweep.entries("mine", [], seeds=0, configs=configs)
    assert words in str(refused.value) and "mine.yaml" in str(refused.value)


def test_an_unknown_sweep_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, ["sweep", "expert"])
    assert done.exit_code == 2
    assert "'expert' is no sweep" in done.output and "balancing, dense, experts" in done.output


def test_a_dry_run_says_the_runs_and_queues_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sweep, "queue", lambda entry: pytest.fail("queued"))
    done = CliRunner().invoke(app, ["sweep", "dense", "--dry-run"])
    assert done.exit_code == 0
    assert done.output.splitlines()[-1] == "sweep: dense has 3 runs; nothing was queued"


@pytest.mark.parametrize(("own", "n_jobs", "threads"), [("", 2, "4"), ("", 16, "1"), ("3", 2, "3")])
def test_runs_share_the_cores_unless_the_user_says_how(
    monkeypatch: pytest.MonkeyPatch, own: str, n_jobs: int, threads: str
) -> None:
    given: dict[str, str] = {}
    monkeypatch.setenv("OMP_NUM_THREADS", own)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(sweep, "_dvc", lambda *command, **environment: given.update(environment))
    assert sweep.start(n_jobs) == threads == given["OMP_NUM_THREADS"]
