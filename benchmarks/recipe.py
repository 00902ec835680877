"""What each choice of the recipe is worth: `python -m benchmarks.recipe`, and against litgpt: `--against-litgpt`.

One thing at a time is changed against the default parameters. Every run is the pipeline's own train stage, in a process
of its own, on the same tokens; a row says bits per byte of the whole val set at equal tokens, at equal seconds (as many
more or fewer tokens as its steps are faster or slower), and the spread over seeds. Rows are kept in a folder as they
come, so that the same command goes on after a stop.

    python -m benchmarks.recipe --only base --only "Muon" --tokens 300000          # short
    python -m benchmarks.recipe --seeds 3 --corpus stories --corpus code           # hours
    python -m benchmarks.recipe --against-litgpt
"""

import json
import math
import os
import statistics
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.files import written_whole

ROOT = Path(__file__).resolve().parent.parent
_MUON = "train.optimizer.name=muon"
_CONSTANT = "train.schedule.name=constant"
_TRIAL = "trial="  # one of benchmarks/trials.py


def _blocks(size: int, n_blocks: int) -> list[str]:
    """Samples of so many tokens, and so many in a step."""
    counts = [f"train.{which}_batch_size={n_blocks}" for which in ("global", "micro")]
    return [f"model.block_size={size}", f"train.block_size={size}", *counts]


# Overrides of the default parameters, by what they change; the first is what the others are compared with.
RECIPES: dict[str, list[str]] = {
    "base": [],
    "batch of 1,024 tokens": _blocks(1024, 1),
    "batch of 4,096 tokens": _blocks(1024, 4),
    "rate 0.003": ["train.optimizer.lr=0.003"],
    "rate 0.006": ["train.optimizer.lr=0.006"],
    "linear to a tenth": ["train.schedule.min_lr_fraction=0.1"],
    "cosine to 0": ["train.schedule.name=cosine"],
    "cosine to a tenth": ["train.schedule.name=cosine", "train.schedule.min_lr_fraction=0.1"],
    "stay, then decay": ["train.schedule.name=wsd", "train.schedule.decay=0.4"],
    "warm-up 0.02": ["train.schedule.warmup=0.02"],
    "betas 0.9, 0.99": ["train.optimizer.betas=[0.9,0.99]"],
    "no weight decay": ["train.optimizer.weight_decay=0"],
    "clip at 0.5": ["train.optimizer.grad_clip=0.5"],
    "Muon": [_MUON],
    "Muon, rate 0.01": [_MUON, "train.optimizer.muon_lr=0.01"],
    "Muon, rate 0.005": [_MUON, "train.optimizer.muon_lr=0.005"],
    "batch ramp": ["trial=batch_ramp"],
    "length ramp": ["trial=length_ramp"],
    "average of weights": ["trial=average_of_weights"],
    "constant rate": [_CONSTANT],
    "constant rate, average of weights": [_CONSTANT, "trial=average_of_weights"],
    "token after the next": ["trial=token_after_the_next"],
    "embedding of unit size": ["trial=embedding_of_unit_size"],
    "residual by depth": ["trial=residual_by_depth"],
    "residual at full size": ["trial=residual_at_full_size"],
    "experts at full weight": ["trial=experts_at_full_weight"],
    "no QK-norm": ["model.norm_qk=false"],
    "tied head": ["model.tie_embeddings=true"],
    "no z-loss": ["train.z_loss_coef=0"],
    "balancing 0.001": ["train.balance_coef=0.001"],
    "balancing 0.1": ["train.balance_coef=0.1"],
    "balancing by bias": ["model.router=sigmoid", "train.balance_coef=0"],
    "16 experts": ["model.n_expert=16"],
    "32 experts": ["model.n_expert=32"],
    "16 experts of 64, 4 each": ["model.n_expert=16", "model.n_expert_per_token=4", "model.moe_intermediate_size=64"],
    "1 expert of 256 each": ["model.n_expert_per_token=1", "model.moe_intermediate_size=256"],
    "no QK-norm, a shared expert": ["model.norm_qk=false", "model.n_shared_expert=1", "model.n_expert_per_token=1"],
    "first layer dense": ["model.first_k_dense_replace=1", "model.intermediate_size=256"],
    "3 layers": ["model.n_layer=3"],
    "6 layers": ["model.n_layer=6"],
    "2 layers of 192": [
        *("model.n_layer=2", "model.n_embd=192", "model.moe_intermediate_size=192", "model.n_head=3"),
        "model.n_query_groups=1",
    ],
    "2 heads": ["model.n_head=2"],
    "vocabulary 8,192": ["tokenizer.vocab_size=8192"],
    "vocabulary 1,024": ["tokenizer.vocab_size=1024"],
    "vocabulary 2,048": ["tokenizer.vocab_size=2048"],
    "blocks of 128": _blocks(128, 16),
    "blocks of 256": _blocks(256, 8),
    "blocks of 512": _blocks(512, 4),
    "blocks of 2,048": _blocks(2048, 1),
    "float32 throughout": ["train.precision=32-true"],
    "dense, equal active": ["model.dense_baseline=active"],
}
CORPORA: dict[str, list[str]] = {
    "stories": [],
    "tinystories": ["download=local", "download.path=corpus.txt", "download.watch=corpus.txt"],
    "code": ["download=local", "clean=code", "download.path=corpus.jsonl", "download.watch=corpus.jsonl"],
}
_BUDGET = ("train.eval_every=0", "train.eval_samples=1000000", "train.checkpoint_every=1000000", "train.compile=off")
_SETTINGS = "settings.json"  # of all runs in a folder
_LITGPT_RATES = (0.001, 0.002, 0.004)
_SPREAD = 0.005  # of bits per byte, by which two seeds of one recipe differ
_SAME = 0.03  # difference in speed below which equal tokens are equal seconds
app = typer.Typer(add_completion=False)


@app.command()
def main(
    place: Annotated[Path, typer.Option(help="Where runs and their rows are kept.")] = Path("recipe"),
    corpus: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(CORPORA)}; may be repeated.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Recipes, else all; may be repeated.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of training.")] = 2_500_000,
    seeds: Annotated[int, typer.Option(help="Seeds of each recipe.")] = 1,
    equal_seconds: Annotated[bool, typer.Option(help="Train faster and slower ones as long as the base, too.")] = False,
    against_litgpt: Annotated[bool, typer.Option(help="litgpt's best of three rates, and when ours is there.")] = False,
    text: Annotated[Path | None, typer.Option(help="A text file for the corpus `tinystories`.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw what the recipes came to, as an image.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set-param", "-S", help="Of every run, as `dvc exp run -S` takes them.")
    ] = None,
    child: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train each recipe and print the table. Nothing else may run beside it: seconds are compared."""
    if child is not None:
        print(_litgpt_loss(child))
        return
    budget = {setting.partition("=")[0] for setting in _BUDGET} | {"train.max_tokens", "train.seed"}
    if refused := [s for s in settings or [] if s.partition("=")[0] in budget]:
        raise typer.BadParameter(f"{', '.join(refused)}: set for every run, or by --tokens and --seeds")
    known = place / _SETTINGS
    before = json.loads(known.read_text()) if known.exists() else []
    if before != (settings or []) and any(place.glob("*/*/row.json")):
        raise typer.BadParameter(f"{place} holds runs with other settings ({before}); name another folder")
    for name in corpus or ["stories"]:
        runs = Runs(place.resolve() / name, name, tokens, seeds, settings or [])
        runs.prepare(text)
        if against_litgpt:
            _race(runs)
        else:
            _table(runs, only or list(RECIPES), equal_seconds)
        if picture:
            _draw(runs, only or list(RECIPES), picture)


def _table(runs: "Runs", recipes: list[str], equal_seconds: bool) -> None:
    print(f"\n{runs.corpus}, {runs.tokens:,} tokens, {runs.seeds} seeds\n")
    print("| recipe | bits per byte | tokens/s | at equal seconds |\n|---|---|---|---|", flush=True)
    rate = _speed(runs.rows(next(iter(RECIPES))))
    for recipe in recipes:
        rows = runs.rows(recipe)
        mine, as_long = _speed(rows), rows
        if equal_seconds and abs(mine / rate - 1) > _SAME:
            as_long = runs.rows(recipe, _rounded(runs.tokens * mine / rate))
        shown = _spread(as_long) if equal_seconds else ""
        print(f"| {recipe} | {_spread(rows)} | {mine:,.0f} | {shown} |", flush=True)


def _speed(rows: list[dict[str, Any]]) -> float:
    return statistics.mean(row["tokens_per_second"] for row in rows)


def _rounded(tokens: float) -> int:
    return max(10_000, int(round(tokens, -4)))


def _spread(rows: list[dict[str, Any]]) -> str:
    bits = [_bits(row) for row in rows]
    half = f" ± {(max(bits) - min(bits)) / 2:.4f}" if len(bits) > 1 else ""
    return f"{statistics.mean(bits):.4f}{half}"


def _draw(runs: "Runs", recipes: list[str], picture: Path) -> None:
    """A point for each seed of each recipe, the best above, and how far seeds of the base differ."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    found = {name: [_bits(row) for row in runs.rows(name)] for name in recipes}
    base = [_bits(row) for row in runs.rows(next(iter(RECIPES)))]
    names = sorted(found, key=lambda name: statistics.mean(found[name]), reverse=True)
    figure, axes = plt.subplots(figsize=(8, 1 + 0.22 * len(names)), layout="constrained")
    axes.axvspan(min(base), max(base) if len(base) > 1 else min(base) + _SPREAD, color="C0", alpha=0.15, lw=0)
    for height, name in enumerate(names):
        axes.plot(found[name], [height] * len(found[name]), "o", color="C0" if RECIPES.get(name) else "C1", ms=4)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel(f"bits per byte, {runs.corpus}, {runs.tokens:,} tokens")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(picture)


def _bits(row: dict[str, Any]) -> float:
    return float(row["val_loss"] / row["bytes_per_token"] / math.log(2))


def _race(runs: "Runs") -> None:
    """litgpt at each rate; then ours with ever more tokens, until it is as good as the best of them."""
    print("\n| contender | tokens | val loss | seconds from process start |\n|---|---|---|---|", flush=True)
    best = math.inf
    for lr in _LITGPT_RATES:
        row = runs.row("base", 0, runs.tokens, lr)
        best = min(best, row["val_loss"])
        print(f"| litgpt, rate {lr:g} | {runs.tokens:,} | {row['val_loss']:.4f} | {row['seconds']:.0f} |", flush=True)
    for share in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        mine = _rounded(runs.tokens * share)
        row = runs.row("base", 0, mine)
        print(f"| ours | {mine:,} | {row['val_loss']:.4f} | {row['seconds']:.0f} |", flush=True)
        if row["val_loss"] <= best:
            break


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """Trainings on one corpus, in a folder that keeps what each came to."""

    folder: Path
    corpus: str
    tokens: int
    seeds: int
    settings: list[str]

    def prepare(self, text: Path | None) -> None:
        """Put the text that the corpus reads beside its runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.corpus == "tinystories" and not (self.folder / "corpus.txt").exists():
            if text is None:
                raise typer.BadParameter("the corpus `tinystories` needs --text FILE")
            (self.folder / "corpus.txt").symlink_to(text.resolve())
        if self.corpus == "code" and not (self.folder / "corpus.jsonl").exists():
            library = Path(sysconfig.get_path("stdlib"))
            files = [f for f in sorted(library.rglob("*.py")) if not {"site-packages", "test", "tests"} & set(f.parts)]
            texts = (json.dumps({"text": file.read_text(encoding="utf-8", errors="ignore")}) + "\n" for file in files)
            (self.folder / "corpus.jsonl").write_text("".join(texts), encoding="utf-8")

    def rows(self, recipe: str, tokens: int | None = None) -> list[dict[str, Any]]:
        """A row of each seed."""
        return [self.row(recipe, seed, self.tokens if tokens is None else tokens) for seed in range(self.seeds)]

    def row(self, recipe: str, seed: int, tokens: int, litgpt_rate: float | None = None) -> dict[str, Any]:
        """What a run came to; it is trained if it was not before. litgpt_rate: litgpt trains it, at this rate."""
        always = [*CORPORA[self.corpus], *self.settings]
        settings = [*always, *(s for s in RECIPES[recipe] if not s.startswith(_TRIAL))]
        trials = [s.removeprefix(_TRIAL) for s in RECIPES[recipe] if s.startswith(_TRIAL)]
        of_tokens = [s for s in RECIPES[recipe] if s.startswith("tokenizer.")]
        data = self.folder / ("data " + (" ".join(of_tokens) or "default")).replace("=", " ")
        by = "" if litgpt_rate is None else f", litgpt {litgpt_rate:g}"
        run = self.folder / f"{recipe}, {tokens}, seed {seed}{by}"
        if not (row := run / "row.json").exists():
            if not (data / "reports/tokenize.json").exists():
                _prepare(data, [*always, *of_tokens])
                for stage in ("download", "clean", "tokenize"):
                    _run(data, "-m", f"stages.{stage}")
            budget = [f"train.max_tokens={tokens}", f"train.seed={42 + seed}", *_BUDGET]
            if litgpt_rate is not None:
                budget += [f"train.optimizer.lr={litgpt_rate}", "train.precision=32-true"]
            _prepare(run, [*settings, *budget])
            if not (run / "data").exists():
                (run / "data").symlink_to(data / "data")
            known = json.loads((data / "reports/tokenize.json").read_text())
            begun = time.time()
            if litgpt_rate is None:
                _run(run, "-m", *(("benchmarks.trials", *trials) if trials else ("stages.train",)))
                report = json.loads((run / "reports/train.json").read_text())
            else:
                said = _run(run, "-m", "benchmarks.recipe", "--child", ".")
                report = {"val_loss": float(said.split()[-1]), "tokens_per_second": tokens / (time.time() - begun)}
            found = {name: report[name] for name in ("val_loss", "tokens_per_second")}
            found |= {"seconds": time.time() - begun, "bytes_per_token": known["val"]["bytes_per_token"]}
            (self.folder.parent / _SETTINGS).write_text(json.dumps(self.settings))
            with written_whole(row) as partial:
                partial.write_text(json.dumps(found))
        done: dict[str, Any] = json.loads(row.read_text())
        return done


def _prepare(folder: Path, settings: list[str]) -> None:
    from pipeline.cli.compose import compose

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("corpus.txt", "corpus.jsonl", "configs"):
        source = ROOT / name if name == "configs" else folder.parent / name
        if source.exists() and not (folder / name).exists():
            (folder / name).symlink_to(source)
    compose(folder / "params.yaml", ROOT / "configs", settings)


def _run(folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed in {folder}:\n{done.stderr[-3000:]}")
    return done.stdout


def _litgpt_loss(folder: Path) -> float:
    """In a process of its own: litgpt's loss on the val set after the run that the folder describes."""
    from benchmarks import litgpt_reference
    from pipeline import params
    from pipeline.train import data, plan

    parameters = params.load(folder / "params.yaml")
    train, planned = parameters.train, plan.make(parameters, folder / "data/tokens", folder / "data/tokenizer")

    def batches() -> Any:
        return data.batches(planned.samples, train, 0, 0, 1, False)

    val = list(data.spread(planned.val, train.eval_samples, 0, 1, train.micro_batch))
    model = parameters.model.model_copy(update={"vocab_size": planned.vocab_size})
    parameters = parameters.model_copy(update={"model": model})
    warmup = round(train.schedule.warmup * planned.total_steps)
    return litgpt_reference.pretrain(parameters, batches, val, planned.total_steps, warmup, folder / "litgpt")


if __name__ == "__main__":
    app()
