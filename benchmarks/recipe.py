"""What each choice of the recipe is worth: `python -m benchmarks.recipe` (short) or `--full`.

One thing at a time is changed against the base; every run is the pipeline's own train stage in a process of its own, on
the same tokens. A row says bits per byte of the whole val set at equal tokens, and how fast the steps are. Rows are
written to a file as they come, so that a run that was stopped goes on where it was.
"""

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parent.parent
# Overrides of the default parameters, by what they change; the first is what the others are compared with.
RECIPES: dict[str, list[str]] = {
    "base": [],
    "rate 0.003": ["train.optimizer.lr=0.003"],
    "rate 0.006": ["train.optimizer.lr=0.006"],
    "decay to 0": ["train.schedule.min_lr_fraction=0"],
    "linear decay to 0": ["train.schedule.name=linear", "train.schedule.min_lr_fraction=0"],
    "linear to 0, rate 0.006": [
        *("train.schedule.name=linear", "train.schedule.min_lr_fraction=0", "train.optimizer.lr=0.006")
    ],
    "stay, then decay": ["train.schedule.name=wsd", "train.schedule.decay=0.4"],
    "warm-up 0.02": ["train.schedule.warmup=0.02"],
    "betas 0.9, 0.99": ["train.optimizer.betas=[0.9,0.99]"],
    "betas 0.8, 0.95": ["train.optimizer.betas=[0.8,0.95]"],
    "no weight decay": ["train.optimizer.weight_decay=0"],
    "weight decay 0.3": ["train.optimizer.weight_decay=0.3"],
    "clip at 0.5": ["train.optimizer.grad_clip=0.5"],
    "Muon 0.01": ["train.optimizer.name=muon", "train.optimizer.muon_lr=0.01"],
    "Muon 0.02": ["train.optimizer.name=muon"],
    "Muon 0.02, linear to 0": [
        *("train.optimizer.name=muon", "train.schedule.name=linear", "train.schedule.min_lr_fraction=0")
    ],
    "batch of 512 tokens": ["train.global_batch_size=2", "train.micro_batch_size=2"],
    "batch of 2,048 tokens": ["train.global_batch_size=8", "train.micro_batch_size=8"],
    "no QK-norm": ["model.norm_qk=false"],
    "tied head": ["model.tie_embeddings=true"],
    "no z-loss": ["train.z_loss_coef=0"],
    "balancing 0.001": ["train.balance_coef=0.001"],
    "balancing by bias": ["model.router=sigmoid", "train.balance_coef=0"],
    "16 experts": ["model.n_expert=16"],
    "16 experts of 64, 4 each": ["model.n_expert=16", "model.n_expert_per_token=4", "model.moe_intermediate_size=64"],
    "1 expert of 256": ["model.n_expert_per_token=1", "model.moe_intermediate_size=256"],
    "a shared expert": ["model.n_shared_expert=1", "model.n_expert_per_token=1"],
    "first layer dense": ["model.first_k_dense_replace=1", "model.intermediate_size=256"],
    "3 layers": ["model.n_layer=3"],
    "6 layers": ["model.n_layer=6"],
    "2 layers of 192": ["model.n_layer=2", "model.n_embd=192", "model.moe_intermediate_size=192"],
    "vocabulary 1,024": ["tokenizer.vocab_size=1024"],
    "vocabulary 4,096": ["tokenizer.vocab_size=4096"],
    "blocks of 512": [
        *("train.block_size=512", "model.block_size=512", "train.global_batch_size=2", "train.micro_batch_size=2")
    ],
    "dense, equal active": ["model.dense_baseline=active"],
}
CORPORA: dict[str, list[str]] = {
    "stories": [],
    "tinystories": ["download=local", "download.path=corpus.txt"],
    "code": ["download=local", "clean=code", "download.path=corpus", "download.pattern='**/*.py'"],
}
_COMPOSING = threading.Lock()  # Hydra has one state for all threads
app = typer.Typer(add_completion=False)


@app.command()
def main(
    place: Annotated[Path, typer.Option(help="Where runs and their rows are kept.")] = Path("recipe"),
    corpus: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(CORPORA)}; may be repeated.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Recipes, else all; may be repeated.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of training.")] = 1_200_000,
    seeds: Annotated[int, typer.Option(help="Seeds of each recipe.")] = 1,
    jobs: Annotated[int, typer.Option(help="Runs at a time; speed is good with 1 alone.")] = 1,
    text: Annotated[Path | None, typer.Option(help="A text file for the corpus `tinystories`.")] = None,
) -> None:
    """Train each recipe and print the table."""
    wanted = [(c, name, seed) for c in corpus or ["stories"] for seed in range(seeds) for name in only or RECIPES]
    for c in dict.fromkeys(c for c, _, _ in wanted):
        _corpus(place.resolve() / c, c, text)
    with ThreadPoolExecutor(jobs) as pool:
        rows = list(pool.map(lambda run: _row(place.resolve(), run[0], run[1], run[2], tokens), wanted))
    _print(rows, tokens)


def _corpus(folder: Path, corpus: str, text: Path | None) -> None:
    """Text that the corpus reads, beside its runs."""
    folder.mkdir(parents=True, exist_ok=True)
    if corpus == "tinystories" and not (folder / "corpus.txt").exists():
        if text is None:
            raise typer.BadParameter("the corpus `tinystories` needs --text FILE")
        (folder / "corpus.txt").symlink_to(text.resolve())
    if corpus == "code" and not (folder / "corpus").exists():
        (folder / "corpus").symlink_to(sysconfig.get_paths()["stdlib"] + "/asyncio")


def _row(place: Path, corpus: str, recipe: str, seed: int, tokens: int) -> dict[str, Any]:
    settings = [*CORPORA[corpus], *RECIPES[recipe]]
    vocabulary = [s for s in settings if s.startswith("tokenizer.")]
    data = place / corpus / ("data " + (" ".join(vocabulary) or "default")).replace("=", " ")
    run = place / corpus / f"{recipe}, {tokens}, seed {seed}"
    row = run / "row.json"
    if not row.exists():
        if not (data / "reports/tokenize.json").exists():
            _stages(data, [*CORPORA[corpus], *vocabulary], ["download", "clean", "tokenize"])
        run.mkdir(exist_ok=True)
        if not (run / "data").exists():
            (run / "data").symlink_to(data / "data")
        budget = [f"train.max_tokens={tokens}", f"train.seed={42 + seed}", "train.eval_every=0"]
        budget += ["train.eval_samples=1000000", "train.checkpoint_every=1000000"]
        begun = time.time()
        _stages(run, [*settings, *budget], ["train"])
        report = json.loads((run / "reports/train.json").read_text())
        known = json.loads((data / "reports/tokenize.json").read_text())
        found = {
            "corpus": corpus, "recipe": recipe, "seed": seed, "tokens": tokens, "val_loss": report["val_loss"],
            "tokens_per_second": report["tokens_per_second"], "seconds": time.time() - begun,
            "bytes_per_token": known["val"]["bytes_per_token"],
        }  # fmt: skip
        row.write_text(json.dumps(found))
        print(json.dumps(found), file=sys.stderr, flush=True)
    done: dict[str, Any] = json.loads(row.read_text())
    return done


def _stages(folder: Path, settings: list[str], stages: list[str]) -> None:
    from pipeline.cli.compose import compose

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("corpus.txt", "corpus", "configs"):
        source = ROOT / name if name == "configs" else folder.parent / name
        if source.exists() and not (folder / name).exists():
            (folder / name).symlink_to(source)
    with _COMPOSING:
        compose(folder / "params.yaml", ROOT / "configs", settings)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    for stage in stages:
        command = [sys.executable, "-m", f"stages.{stage}"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{stage} failed in {folder}:\n{done.stderr[-3000:]}")


def bits_per_byte(row: dict[str, Any]) -> float:
    return float(row["val_loss"] / row["bytes_per_token"] / 0.6931471805599453)


def _print(rows: list[dict[str, Any]], tokens: int) -> None:
    print(f"\n{tokens:,} tokens each\n\n| corpus | recipe | bits per byte | spread | tokens/s |\n|---|---|---|---|---|")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["corpus"], row["recipe"]), []).append(row)
    for (corpus, recipe), seeds in groups.items():
        bits = [bits_per_byte(row) for row in seeds]
        rate = statistics.mean(row["tokens_per_second"] for row in seeds)
        spread = f"{max(bits) - min(bits):.4f}" if len(bits) > 1 else ""
        print(f"| {corpus} | {recipe} | {statistics.mean(bits):.4f} | {spread} | {rate:,.0f} |")


if __name__ == "__main__":
    app()
