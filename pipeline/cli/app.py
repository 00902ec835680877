"""The `moe` command: what people call by hand. Each command validates, calls the library, and speaks plainly."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.errors import UserError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="A small Mixture-of-Experts language model, by hand."
)
PARAMS = typer.Option("--params", help="Parameters to read.")
CHECKPOINT = typer.Option(
    help="litgpt checkpoint folder, Hugging Face folder, or W&B artifact entity/project/name:alias."
)
DEVICE = typer.Option(help="auto, cpu, cuda or mps.")
MAX_NEW_TOKENS = typer.Option(help="Tokens to write at most.")
TEMPERATURE = typer.Option(help="0: the likeliest token each time; higher: more surprising.")
TOP_K = typer.Option(help="Choose among the k likeliest tokens.")
TOP_P = typer.Option(help="Choose among the fewest tokens that hold this share of the probability.")
MIN_P = typer.Option(help="Choose among tokens at least this times as likely as the likeliest.")
REPETITION_PENALTY = typer.Option(help="Above 1: tokens that are there already become less likely.")
SEED = typer.Option(help="The same seed gives the same text.")
STOP = typer.Option(help="End before this text; may be given several times.")


@contextmanager
def told() -> Iterator[None]:
    """A UserError becomes its words and exit code 2."""
    try:
        yield
    except UserError as error:
        console.fail(str(error))
        raise typer.Exit(2) from None


@app.command()
def mirror(
    stage: Annotated[str | None, typer.Option(help="Only this stage's outputs.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded.")] = False,
) -> None:
    """Bring what dvc.lock says to W&B: missing versions, aliases, lineage. Recomputes nothing."""
    with told():
        from pipeline import tracking

        tracking.mirror(stage, dry_run)


@app.command()
def fetch(artifact: Annotated[str, typer.Argument(help="[entity/project/]name:alias, e.g. model:best")]) -> None:
    """Put a W&B artifact in place as its stage's output, so that `dvc repro` goes on from there."""
    with told():
        from pipeline import tracking

        tracking.fetch(artifact)


@app.command()
def generate(
    prompt: Annotated[list[str] | None, typer.Option(help="Beginning of a text; may be given several times.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="File with a prompt a line.")] = None,
    checkpoint: Annotated[str, CHECKPOINT] = "models/litgpt",
    max_new_tokens: Annotated[int, MAX_NEW_TOKENS] = 256,
    temperature: Annotated[float, TEMPERATURE] = 0.8,
    top_k: Annotated[int | None, TOP_K] = None,
    top_p: Annotated[float, TOP_P] = 1.0,
    min_p: Annotated[float, MIN_P] = 0.0,
    repetition_penalty: Annotated[float, REPETITION_PENALTY] = 1.0,
    seed: Annotated[int, SEED] = 0,
    stop: Annotated[list[str] | None, STOP] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Continue a text, or each line of a file, with a trained model."""
    with told():
        from pipeline.cli import terminal
        from pipeline.generate.sampling import Sampling

        prompts = [*(prompt or []), *(terminal.read_prompts(prompts_file) if prompts_file else [])]
        if not prompts:
            raise UserError('give --prompt "Once upon a time", or --prompts-file with a prompt a line')
        sampling = Sampling(
            max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop=tuple(stop or ())
        )
        with terminal.opened(checkpoint, device) as generator:
            terminal.generate(generator, prompts, sampling, json)


@app.command()
def push(
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hugging Face Hub, as owner/name.")],
    folder: Annotated[Path, typer.Option(help="What to push.")] = Path("models/hf"),
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and send nothing.")] = False,
) -> None:
    """Push the exported model to the Hugging Face Hub, private by default; HF_TOKEN from the environment."""
    with told():
        from pipeline.cli import hub

        files = hub.push(folder, repo_id, private=not public, dry_run=dry_run)
        for name, n_bytes in files:
            console.say(f"  {name} ({console.size(n_bytes)})")
        total = f"{len(files)} files, {console.size(sum(n_bytes for _, n_bytes in files))}"
        seen = "everybody sees it" if public else "private"
        console.say(f"push: would send {total} to {repo_id}" if dry_run else f"push: {repo_id} has {total}, {seen}")


@app.command(name="import")
def import_(
    folder: Annotated[Path, typer.Argument(help="A folder as transformers writes it: Mixtral, Qwen3-MoE, Llama, …")],
    into: Annotated[Path, typer.Option(help="litgpt checkpoint folder to write.")] = Path("models/imported"),
) -> None:
    """Turn a Hugging Face folder into a litgpt checkpoint to continue from (train.initial_checkpoint)."""
    with told():
        from pipeline.huggingface import folder as huggingface

        model = huggingface.from_huggingface(folder, into)
        console.say(f"import: wrote {into}: {model.n_layer} layers of {model.n_embd}, {model.n_expert} experts")
        settings = huggingface.to_continue(model, into)
        if "tokenizer=pretrained" not in settings:
            console.warn(
                f"{folder} has no tokenizer; name the model's own: -S tokenizer=pretrained -S tokenizer.path=…"
            )
        console.say("continue with: uv run dvc exp run " + " ".join(f"-S {shlex.quote(s)}" for s in settings))


@app.command()
def plan(params_file: Annotated[Path, PARAMS] = Path("params.yaml")) -> None:
    """Count before training: parameters, memory of a step, tokens, FLOPs, and the time they take on this machine."""
    with told():
        from pipeline import params
        from pipeline.cli.plan import forecast
        from pipeline.stage import TOKENIZER, TOKENS

        for line in forecast(params.load(params_file), TOKENS, TOKENIZER):
            console.say(line)


@app.command()
def chat(
    checkpoint: Annotated[str, CHECKPOINT] = "models/litgpt",
    max_new_tokens: Annotated[int, MAX_NEW_TOKENS] = 128,
    temperature: Annotated[float, TEMPERATURE] = 0.8,
    top_k: Annotated[int | None, TOP_K] = None,
    top_p: Annotated[float, TOP_P] = 1.0,
    min_p: Annotated[float, MIN_P] = 0.0,
    repetition_penalty: Annotated[float, REPETITION_PENALTY] = 1.0,
    seed: Annotated[int, SEED] = 0,
    stop: Annotated[list[str] | None, STOP] = None,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Write in turns with a trained model: it goes on from your line, or answers if it has a chat template."""
    with told():
        from pipeline.cli import terminal
        from pipeline.generate.sampling import Sampling

        sampling = Sampling(
            max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop=tuple(stop or ())
        )
        with terminal.opened(checkpoint, device) as generator:
            terminal.chat(generator, sampling)


@app.command(name="compose")
def compose_(
    overrides: Annotated[list[str] | None, typer.Argument(help="As after -S: GROUP=NAME or KEY=VALUE.")] = None,
) -> None:
    """Write params.yaml from configs/ and these overrides, as `dvc exp run` does."""
    with told():
        from pipeline.cli.compose import compose

        compose(Path("params.yaml"), overrides=overrides)


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Leave out torch.compile, which takes half a minute.")] = False,
) -> None:
    """Check this machine: packages, device, attention, the expert layer, torch.compile."""
    from pipeline.cli import doctor as checks

    if not checks.report(checks.examine(compile_too=not quick)):
        raise typer.Exit(1)
