"""The loop does what params say, its numbers add up, and what goes wrong is told in words."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.model import build, checkpoint_folder
from pipeline.train import optimizers, plan, process, resume
from pipeline.train import step as steps
from pipeline.train.step import LossScale
from tests.train.small import run, tiny, weights


def rows(out: Path, name: str = "metrics") -> list[dict[str, str]]:
    (path,) = out.glob(f"runs/*/{name}.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_learns_and_its_numbers_add_up(corpus: Path, tmp_path: Path) -> None:
    report = run(corpus, tmp_path, tiny(max_steps=40, log_every=4, eval_every=20, checkpoint_every=100), plots=True)
    assert report["loss"] < 4.5 < float(rows(tmp_path)[0]["lm_loss"])
    assert report["tokens"] == 40 * 8 * 32 == int(rows(tmp_path)[-1]["tokens"])
    assert report["tokens"] / report["seconds"] == pytest.approx(report["tokens_per_second"])
    achieved = report["tokens_per_second"] * report["flops_per_token"]
    assert achieved / report["peak_flops"]["per_device"] == pytest.approx(report["mfu"])
    for row in rows(tmp_path):
        parts = float(row["lm_loss"]) + 0.01 * float(row["balance_loss"]) + 0.001 * float(row["z_loss"])
        assert float(row["loss"]) == pytest.approx(parts)
    assert [row["step"] for row in rows(tmp_path) if row["val_loss"]] == ["20", "40"]
    (live,) = (tmp_path / "live").glob("plots/metrics/lm_loss.tsv")
    assert len(live.read_text().splitlines()) == 1 + len(rows(tmp_path))
    assert json.loads((tmp_path / "live" / "metrics.json").read_text())["step"] == 40
    assert not list((tmp_path / "live").glob("**/dvc.yaml"))
    plots = {path.name: path for path in (tmp_path / "plots").iterdir()}
    assert set(plots) == {"loss.csv", "val_loss.csv", "loss.png", "experts.png"}
    series = {name: list(csv.DictReader(plots[name].open())) for name in ("loss.csv", "val_loss.csv")}
    assert [row["step"] for row in series["val_loss.csv"]] == ["20", "40"] and len(series["loss.csv"]) == 10
    assert all(cell for table in series.values() for row in table for cell in row.values())  # DVC draws none as zero
    experts = rows(tmp_path, "experts")
    assigned = [[int(n) for n in row["tokens_per_expert"].split()] for row in experts]
    assert [row["layer"] for row in experts] == ["1", "2"] * 10
    assert {(len(a), sum(a)) for a in assigned} == {(4, 4 * 8 * 32 * 2)}  # top-2, four steps
    last_three = [sum(n) for n in zip(*assigned[-6::2], strict=True)]
    assert report["routing"]["layers"][0]["tokens_per_expert"] == last_three
    loaded = checkpoint_folder.load(tmp_path / "model")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in weights(tmp_path).items())


def test_a_new_run_shows_no_point_of_an_earlier_one_while_it_goes_on(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path, tiny(max_steps=8, eval_every=4))
    (tmp_path / "live" / "plots" / "metrics" / "of_another_version.tsv").write_text("step\tloss\n1\t2\n")
    run(corpus, tmp_path, tiny(max_steps=3, log_every=3, seed=1))
    shown = {path.name: path.read_text().splitlines() for path in (tmp_path / "live").glob("plots/metrics/*.tsv")}
    assert "of_another_version.tsv" not in shown and {len(lines) for lines in shown.values()} == {2}


def test_accumulation_gives_the_gradient_of_the_whole_batch(corpus: Path, tmp_path: Path) -> None:
    norms = []
    for micro in (8, 2):
        out = tmp_path / str(micro)
        run(corpus, out, tiny(max_steps=3, micro_batch_size=micro, balance_coef=0.0))
        norms.append([float(row["grad_norm"]) for row in rows(out)])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_checkpointing": True},
        {"loss_chunk": 50},
        {"num_workers": 1},
    ],
)
def test_what_saves_memory_or_time_changes_no_loss(corpus: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    run(corpus, tmp_path / "plain", tiny(max_steps=4))
    run(corpus, tmp_path / "other", tiny(max_steps=4, **changes))
    plain, other = ([float(row["loss"]) for row in rows(tmp_path / name)] for name in ("plain", "other"))
    assert other == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "train"),
    [
        ({"n_expert": 0}, {}),
        ({"router": "sigmoid", "n_shared_expert": 1}, {}),
        ({"moe_every": 2, "tie_embeddings": False}, {"document_mask": True}),
        ({}, {"precision": "bf16-mixed"}),
        ({}, {"precision": "bf16-true"}),
        ({"dense_baseline": "active"}, {"optimizer_name": "muon"}),
        ({}, {"optimizer_name": "muon"}),
    ],
)
def test_every_kind_of_model_and_precision_learns(
    corpus: Path, tmp_path: Path, model: dict[str, Any], train: dict[str, Any]
) -> None:
    train = dict(train)
    optimizer = {"name": train.pop("optimizer_name", "adamw"), "lr": 0.01}
    report = run(corpus, tmp_path, tiny(model=model, optimizer=optimizer, max_steps=15, **train))
    assert report["loss"] < float(rows(tmp_path)[0]["lm_loss"]) - 0.5
    assert bool(report["routing"]["layers"]) == (model.get("n_expert") != 0 and model.get("dense_baseline") is None)


def test_wsd_holds_the_peak_and_decays_at_the_end_of_the_run(corpus: Path, tmp_path: Path) -> None:
    schedule = {"name": "wsd", "warmup": 2, "decay": 0.25, "min_lr": 0.0, "min_lr_fraction": 0.1}
    run(corpus, tmp_path, tiny(max_steps=12, schedule=schedule, optimizer={"lr": 0.01}))
    peak, floor = 0.01, 0.001
    stable = [0.005, *[peak] * 9]  # two steps of warm-up, the second at the peak; then three that decay
    assert [float(row["lr"]) for row in rows(tmp_path)] == pytest.approx([*stable, (peak + floor) / 2, floor])


def test_gradients_are_clipped_to_the_norm_that_params_give(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    original = optimizers.step_unless

    def noted(optimizers: list[torch.optim.Optimizer], bad: torch.Tensor) -> None:
        grads = [p.grad for group in optimizers[0].param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))
        original(optimizers, bad)

    monkeypatch.setattr(optimizers, "step_unless", noted)
    run(corpus, tmp_path / "clipped", tiny(max_steps=2, optimizer={"grad_clip": 0.25}))
    assert norms == pytest.approx([0.25, 0.25], rel=1e-4)
    assert all(float(row["grad_norm"]) > 0.25 for row in rows(tmp_path / "clipped"))  # reported as it was before
    run(corpus, tmp_path / "free", tiny(max_steps=2, optimizer={"grad_clip": 0.0}))
    assert norms[2:] == pytest.approx([float(row["grad_norm"]) for row in rows(tmp_path / "free")], rel=1e-5)


def spoiled(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """Make the loss of these steps not a number."""
    number = 0
    original = steps.Step.__call__

    def noted(self: Any, n: int, batches: Any) -> None:
        nonlocal number
        number = n
        original(self, n, batches)

    forward = steps.Objective.forward

    def poisoned(self: Any, tokens: Any) -> Any:
        total, parts = forward(self, tokens)
        return (total * float("nan"), parts) if self.training and number in bad else (total, parts)

    monkeypatch.setattr(steps.Step, "__call__", noted)
    monkeypatch.setattr(steps.Objective, "forward", poisoned)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_non_finite_step_is_left_out_and_the_run_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    spoiled(monkeypatch, {4, 5, 8})
    report = run(corpus, tmp_path, tiny(max_non_finite_steps=2, optimizer={"name": optimizer}))
    assert report["non_finite_steps"] == 3 and report["steps"] == 12
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())


def test_too_many_non_finite_steps_in_a_row_stop_the_run_with_step_and_batch(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, set(range(7, 12)))
    with pytest.raises(UserError, match=r"3 steps in a row, from step 7 .* samples \[\d+, .*train\.optimizer\.lr"):
        run(corpus, tmp_path, tiny(max_non_finite_steps=2))
    assert not (tmp_path / "model").exists()
    (folder,) = (tmp_path / "runs").iterdir()
    state = torch.load(sorted(folder.glob("step-*"))[-1] / "state.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_loss_scale_halves_on_overflow_and_grows_with_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "_PATIENCE", 3)
    scale = LossScale(torch.device("cpu"))
    seen = []
    for overflow in (True, True, False, False, False, False, True):
        scale.update(torch.tensor(overflow))
        seen.append(float(scale.scale))
    assert seen == [32768, 16384, 16384, 16384, 32768, 32768, 16384]
    other = LossScale(torch.device("cpu"))
    other.load(scale.state())
    assert other.state() == scale.state()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "cuda"}, "train.device: torch finds no 'cuda'"),
        ({"device": "auto", "precision": "16-mixed"}, "train.precision = '16-mixed' needs a GPU"),
        ({"device": "auto", "optimizer": {"name": "adamw8bit"}}, "optimizer.name: adamw8bit runs on cuda, not on cpu"),
        ({"block_size": 32, "max_steps": 5, "warmup": 50}, "warmup = 50 steps, but the run has 5"),
        ({"model": {"vocab_size": 100}}, "the tokenizer has 257 tokens"),
        ({"initial_checkpoint": "nowhere"}, "nowhere"),
        ({"block_size": 20000, "model": {"block_size": 20000}}, "/val holds less than .* raise clean.val_fraction"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="speaks of a CPU")
def test_what_cannot_be_is_refused_before_anything_is_written(
    corpus: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    changes = dict(changes)
    warmup = changes.pop("warmup", None)
    parameters = tiny(**changes)
    if warmup:
        schedule = parameters.train.schedule.model_copy(update={"warmup": warmup})
        parameters = parameters.model_copy(update={"train": parameters.train.model_copy(update={"schedule": schedule})})
    with pytest.raises(UserError, match=words):
        run(corpus, tmp_path, parameters)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("epochs", "warned"), [(3.0, False), (5.0, True)])
def test_many_passes_over_the_same_tokens_are_warned_of(
    corpus: Path, epochs: float, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = tiny(max_steps=None, max_epochs=epochs)
    planned = plan.make(parameters, corpus / "tokens", corpus / "tokenizer")
    assert planned.epochs == pytest.approx(epochs, rel=0.01)
    plan.remarks(planned, parameters)
    assert ("training tokens 5.0 times" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("context", "block_size", "batch", "advice"),
    [
        (
            512,
            512,
            2,
            "-S model.block_size=128 -S train.global_batch_size=8 -S train.micro_batch_size=8 (the model then ",
        ),
        (512, 512, "auto", "-S model.block_size=128 -S train.global_batch_size=8 (the model then reads 128 tokens at"),
        (1024, 512, 2, "-S train.block_size=128 -S train.global_batch_size=8 -S train.micro_batch_size=8\n"),
        (512, 512, 8, None),  # enough documents in a step
        (256, 256, 2, None),  # nothing left to cut
        (2048, 2048, 2, None),  # several documents in a sample
    ],
)
def test_steps_of_few_long_documents_are_warned_of(
    corpus: Path,
    context: int,
    block_size: int,
    batch: int | str,
    advice: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes: dict[str, Any] = {"block_size": block_size, "micro_batch_size": batch}
    sizes["global_batch_size"] = 2 if batch == "auto" else batch
    parameters = tiny(model={"block_size": context}, **sizes)
    planned = plan.make(parameters, corpus / "tokens", corpus / "tokenizer")
    length = planned.samples.tokens_per_document
    assert length and 512 < length < 2048
    plan.remarks(planned, parameters)
    said = capsys.readouterr().err
    assert advice in said if advice else not said


@pytest.mark.parametrize(
    ("used", "own", "threads"), [(0.0, None, 4), (50.0, None, 2), (100.0, None, 1), (100.0, "4", 4)]
)
def test_cores_that_other_processes_keep_busy_are_left_to_them(
    used: float,
    own: str | None,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: used)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        process.leave_busy_cores()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    said = " ".join(capsys.readouterr().err.split())
    assert (f"so that {threads} of 4 threads compute" in said) == (threads < 4)


def test_initial_weights_come_from_a_litgpt_folder(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "first", tiny(max_steps=30))
    folder = str(tmp_path / "first" / "model")
    report = run(corpus, tmp_path / "second", tiny(max_steps=1, initial_checkpoint=folder))
    assert report["loss"] < float(rows(tmp_path / "first")[0]["lm_loss"]) - 0.5
    with pytest.raises(UserError, match=r"n_embd: 32 there, 64 here"):
        run(corpus, tmp_path / "third", tiny(model={"n_embd": 64}, initial_checkpoint=folder))


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        ({"tie_embeddings": False}, {"tie_embeddings": True}, "tie_embeddings: False there, True here"),
        ({"tie_embeddings": True}, {"tie_embeddings": False}, "tie_embeddings: True there, False here"),
        ({}, {"n_head": 1, "head_size": 32, "n_query_groups": 1}, "n_head: 2 there, 1 here"),
        ({"head_size": 16}, {"n_head": 2, "head_size": None}, None),
        ({"rope_base": 500}, {}, "rope_base: 500 there, 10000 here"),
        ({}, {"n_expert_per_token": 1}, "n_expert_per_token: 2 there, 1 here"),
        ({"norm_topk_prob": False}, {"norm_topk_prob": True}, "norm_topk_prob: False there, True here"),
        ({"moe_every": 2}, {"n_expert": 0}, "n_expert: 4 there, 0 here"),
        ({"router": "sigmoid"}, {}, "router: sigmoid there, softmax here"),
        ({}, {"block_size": 64}, None),  # rotary tables are computed
    ],
)
def test_initial_weights_of_a_model_that_computes_otherwise_are_refused_by_field(
    tmp_path: Path, there: dict[str, Any], here: dict[str, Any], words: str | None
) -> None:
    parts = {"n_query_groups": 2, "norm_qk": False}
    checkpoint_folder.save(build.build(tiny(model=parts | there).model, 257, seed=1), tmp_path / "model")
    mine = build.build(tiny(model=parts | here).model, 257, seed=2)
    if words is None:
        resume.take_weights(mine, tmp_path / "model")
        assert mine.lm_head.weight.equal(checkpoint_folder.load(tmp_path / "model").lm_head.weight)
        return
    before = {name: weight.clone() for name, weight in mine.state_dict().items()}
    with pytest.raises(UserError, match=words):
        resume.take_weights(mine, tmp_path / "model")
    assert all(before[name].equal(weight) for name, weight in mine.state_dict().items())


def test_equal_matrices_of_a_folder_that_litgpt_wrote_pass_for_tied_ones(tmp_path: Path) -> None:
    model = build.build(tiny(model={"tie_embeddings": True, "norm_qk": False}).model, 257, seed=1)
    checkpoint_folder.save(model, tmp_path / "model")
    (tmp_path / "model" / checkpoint_folder.PARAMS).unlink()
    mine = build.build(tiny(model={"tie_embeddings": True, "norm_qk": False}).model, 257, seed=2)
    resume.take_weights(mine, tmp_path / "model")
    assert mine.lm_head.weight.equal(model.lm_head.weight)


def test_the_first_bound_that_is_met_ends_the_run(corpus: Path, tmp_path: Path) -> None:
    report = run(corpus, tmp_path, tiny(max_steps=50, max_tokens=1000, max_epochs=2.0))
    assert report["stopped_by"] == "max_tokens" and report["steps"] == 4  # ceil(1000 / 256)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_model_has_the_losses_of_an_eager_one(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "eager", tiny(max_steps=2))
    report = run(corpus, tmp_path / "compiled", tiny(max_steps=2, compile="on"))
    assert report["compiled"]
    eager, compiled = ([float(row["loss"]) for row in rows(tmp_path / name)] for name in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, rel=1e-5)
