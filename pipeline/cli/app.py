"""The `moe` command: what people call by hand. Each command validates, calls the library, and speaks plainly.

Commands import what they need when they run, so that `--help` answers at once.
"""

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline import console
from pipeline.errors import UserError, refusal

if TYPE_CHECKING:
    from pipeline.generate.generation import Generator
    from pipeline.generate.sampling import Sampling

PARAMS = typer.Option("--params", help="Parameters to read.")
CHECKPOINT = typer.Option(
    help="litgpt checkpoint folder, Hugging Face folder, or W&B artifact entity/project/name:alias."
)
DEVICE = typer.Option(help="auto, cpu, cuda or mps.")
_GENTLER = 10  # times that learning rates are divided by to go on from a trained model


class _InWords(TyperGroup):
    """Every command: a mistake that the user can mend, a disk that refuses and Ctrl-C are words, not tracebacks."""

    def invoke(self, ctx: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character shows a sign in its place
                stream.reconfigure(errors="replace")
        try:
            return super().invoke(ctx)
        except UserError as error:
            console.fail(str(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            console.fail("interrupted")
            raise typer.Exit(130) from None
        except typer.Exit:
            raise
        except Exception as error:
            if (words := refusal(error)) is None:
                raise
            console.fail(words)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_InWords,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="A small Mixture-of-Experts language model, by hand.",
)


def _in_project(*names: str) -> None:
    """Raise UserError unless the working directory is a project with these files."""
    for name in names:
        if not Path(name).exists():
            raise UserError(f"no {name} in {Path.cwd()}; run this from the project's folder, the one with dvc.yaml")


@contextmanager
def _model(
    checkpoint: Annotated[str, CHECKPOINT] = "models/litgpt",
    device: Annotated[str, DEVICE] = "auto",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 256,
    temperature: Annotated[
        float, typer.Option(help="0: the likeliest token each time; higher: more surprising.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Choose among the k likeliest tokens.")] = None,
    top_p: Annotated[
        float, typer.Option(help="Choose among the fewest tokens that hold this share of the probability.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Choose among tokens at least this times as likely as the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: tokens that are there already become less likely.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
) -> "Iterator[tuple[Generator, Sampling]]":
    """The model and the sampling that the options of `moe generate` and `moe chat` describe."""
    from pipeline.cli import terminal
    from pipeline.generate.sampling import Sampling

    sampling = Sampling(
        max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop=tuple(stop or ())
    )
    with terminal.opened(checkpoint, device) as generator:
        yield generator, sampling


Model = Callable[[], "AbstractContextManager[tuple[Generator, Sampling]]"]


def _with_model(command: Callable[..., None]) -> Callable[..., None]:
    """The command with `_model`'s options after its own; it gets `_model`, filled in, as its first argument."""
    shared = inspect.signature(_model).parameters

    def run(**given: Any) -> None:
        command(partial(_model, **{name: given.pop(name) for name in shared}), **given)

    own = list(inspect.signature(command).parameters.values())[1:]
    run.__signature__ = inspect.Signature([*own, *shared.values()])  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


@app.command()
@_with_model
def generate(
    model: Model,
    prompt: Annotated[list[str] | None, typer.Option(help="Beginning of a text; may be given several times.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="File with a prompt a line.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Continue a text, or each line of a file, with a trained model."""
    if not prompt and not prompts_file:
        raise UserError('give --prompt "Once upon a time", or --prompts-file with a prompt a line')
    from pipeline.cli import terminal

    prompts = [*(prompt or []), *(terminal.read_prompts(prompts_file) if prompts_file else [])]
    with model() as (generator, sampling):
        terminal.generate(generator, prompts, sampling, json)


@app.command()
@_with_model
def chat(model: Model) -> None:
    """Write in turns with a trained model: it goes on from your line, or answers if it has a chat template."""
    from pipeline.cli import terminal

    with model() as (generator, sampling):
        terminal.chat(generator, sampling)


@app.command()
def serve(
    checkpoint: Annotated[str, CHECKPOINT] = "models/litgpt",
    device: Annotated[str, DEVICE] = "auto",
    host: Annotated[
        str, typer.Option(help="Address to listen at; one that others can reach needs MOE_SERVE_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0: any that is free.")] = 8000,
    batch: Annotated[int, typer.Option(help="Texts that the model writes at once.")] = 16,
    queue: Annotated[int, typer.Option(help="Further texts that may wait; more are refused with 429.")] = 64,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in your browser.")] = False,
) -> None:
    """Open a page to write with a trained model and see its experts, and an API for OpenAI's clients."""
    from pipeline.serve.listen import Listen

    listen = Listen(host, port, os.environ.get("MOE_SERVE_TOKEN"), batch, queue, open_page)
    from pipeline.cli import terminal
    from pipeline.serve import server

    with terminal.opened(checkpoint, device) as generator:
        server.serve(generator, checkpoint, listen)


@app.command()
def mirror(
    stage: Annotated[str | None, typer.Option(help="Only this stage's outputs.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded.")] = False,
) -> None:
    """Upload what dvc.lock describes to W&B: missing versions, aliases, lineage. Recomputes nothing."""
    _in_project("dvc.yaml")
    from pipeline import tracking

    tracking.mirror(stage, dry_run)


@app.command()
def fetch(artifact: Annotated[str, typer.Argument(help="[entity/project/]name:alias, e.g. model:best")]) -> None:
    """Put a W&B artifact in place as its stage's output, so that `dvc repro` goes on from there."""
    _in_project("dvc.yaml")
    from pipeline import tracking

    tracking.fetch(artifact)


@app.command()
def push(
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hugging Face Hub, as owner/name.")],
    folder: Annotated[Path, typer.Option(help="What to push.")] = Path("models/hf"),
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and send nothing.")] = False,
) -> None:
    """Push the exported model to the Hugging Face Hub, private by default; log in with `hf auth login` or HF_TOKEN."""
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
    from pipeline import params
    from pipeline.export import card
    from pipeline.huggingface import folder as huggingface

    card.refuse_damage(folder, "*.safetensors")
    model = huggingface.from_huggingface(folder, into)
    console.say(f"import: wrote {into}: {model.n_layer} layers of {model.n_embd}, {model.n_expert} experts")
    settings = huggingface.to_continue(model, into)
    if Path("params.yaml").exists():  # rates that train from scratch undo what the model knows
        optimizer = params.load().train.optimizer.model_dump()
        rates = {key: value / _GENTLER for key, value in optimizer.items() if key.endswith("lr")}
        settings += [f"train.optimizer.{key}={value:g}" for key, value in rates.items()]
    else:
        console.warn(f"no params.yaml here: also set train.optimizer.lr to a {_GENTLER}th of what trains from scratch")
    if "tokenizer=pretrained" not in settings:
        console.warn(f"{folder} has no tokenizer; name the model's own: -S tokenizer=pretrained -S tokenizer.path=…")
    console.say("continue with: uv run dvc exp run " + " ".join(f"-S {shlex.quote(s)}" for s in settings))


@app.command()
def preview(
    path: Annotated[Path, typer.Argument(help="A file or folder, as for download.path.")],
    split: Annotated[str, typer.Option(help="As download.split.")] = "auto",
    separator: Annotated[str, typer.Option(help="As download.separator.")] = "<|endoftext|>",
    text_column: Annotated[str, typer.Option(help="As download.text_column.")] = "text",
) -> None:
    """Show which documents your text gives: how it is split, how long they are, the first three."""
    from pipeline.cli.preview import preview
    from pipeline.documents.reading import How

    for line in preview(path, How(text_column, split, separator)):
        console.say(line)


@app.command()
def plan(
    params_file: Annotated[Path, PARAMS] = Path("params.yaml"),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set-param", "-S", help="Plan what `dvc exp run -S` would train: GROUP=NAME or KEY=VALUE."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Of one device, such as 6GB, less 0.5GB for CUDA: does a step fit, what would?"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="The time on a GPU that is elsewhere, such as 'RTX 3060', by its datasheet.")
    ] = None,
    finetune: Annotated[bool, typer.Option("--finetune", help="Plan finetuning, of finetune.checkpoint.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Train for five seconds, to tell the time on this machine.")
    ] = False,
) -> None:
    """Count before training: parameters, memory of a step, tokens, FLOPs, and the time they take."""
    from pipeline.cli.plan import forecast, n_bytes, wanted
    from pipeline.stage import ADAPTER, INSTRUCT, REPORTS, TOKENIZER, TOKENS

    report = REPORTS / ("finetune.json" if finetune else "train.json")
    available = None if memory is None else n_bytes(memory)
    params = wanted(params_file, overrides or [])
    tokens, tokenizer, adapter = TOKENS, TOKENIZER, None
    if finetune:
        from pipeline.finetune.finetune import low_rank, of_checkpoint

        tokens, tokenizer, adapter = INSTRUCT, Path(params.finetune.checkpoint), low_rank(params, ADAPTER)
        params = of_checkpoint(params)
    if measure and device is not None:
        raise UserError(f"--measure: that is for this machine, and --device {device} is another; take one of them")
    for line in forecast(params, tokens, tokenizer, available, device, adapter, measure, report):
        console.say(line)


@app.command()
def compose(
    overrides: Annotated[list[str] | None, typer.Argument(help="As after -S: GROUP=NAME or KEY=VALUE.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 where params.yaml differs.")
    ] = False,
) -> None:
    """Write params.yaml from configs/ and these overrides, as `dvc exp run` does."""
    _in_project("configs/config.yaml")
    from pipeline.cli import compose

    if not check:
        compose.compose(Path("params.yaml"), overrides=overrides)
    elif differing := compose.differences(overrides=overrides):
        for line in differing:
            console.say(f"params.yaml: {line}")
        console.warn(
            "`dvc repro` uses params.yaml; `dvc exp run` composes it from configs/ anew. Edit configs/ to match"
        )
        raise typer.Exit(1)
    else:
        console.say("params.yaml is what configs/ compose")


@app.command()
def use(
    choices: Annotated[list[str], typer.Argument(help="SECTION=PRESET or SECTION.KEY=VALUE.")],
) -> None:
    """Choose presets and values for every later run, as in `moe use download=local download.path=data/own/a.txt`."""
    _in_project("configs/config.yaml", "params.yaml")
    from pipeline.cli import use

    wrote = " ".join(path.as_posix() for path in use.use(choices))
    console.say(f"use: every later run composes {' '.join(choices)}; for your clones: git add {wrote} params.yaml")


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="Of a file in configs/sweep/.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set-param", "-S", help="For every run, as for `dvc exp run -S`.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=0, help="Train each run so often, with seeds 1, 2, …; 0: once.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which runs there would be.")] = False,
) -> None:
    """Queue a set of experiments and start them: `moe sweep experts --seeds 3`. All are checked first."""
    _in_project("configs/config.yaml", "params.yaml", "dvc.yaml")
    from pipeline.cli import sweep

    entries = sweep.entries(name, overrides or [], seeds)
    runs = [run for entry in entries for run in sweep.runs(entry)]
    for run in runs:
        console.say(f"run: {' '.join(run)}")
    if dry_run:
        console.say(f"sweep: {name} has {len(runs)} runs; nothing was queued")
        return
    for entry in entries:
        sweep.queue(entry)
    n_threads = sweep.start(jobs)
    console.say(
        f"sweep: {len(runs)} runs of {name} started, {jobs} at a time, CPU threads of each: {n_threads}. "
        "`dvc queue status` shows them, `dvc exp show` their figures, `dvc queue stop` ends the queue"
    )


@app.command()
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Experiments, commits, branches or `workspace`; none: this commit's experiments."),
    ] = None,
    html: Annotated[Path, typer.Option(help="The page to write.")] = Path("reports/compare.html"),
) -> None:
    """Show experiments side by side: what differs, quality, speed and size, here and on a page with curves."""
    _in_project("dvc.yaml", "params.yaml")
    from pipeline.cli.compare import experiments, pages

    settings = experiments.settings(experiments.read(names or []))
    pages.show(settings)
    pages.write(html, settings)
    runs = sum(len(setting.experiments) for setting in settings)
    console.say(f"compare: {len(settings)} settings, {runs} runs; curves over tokens and over seconds: {html}")


@app.command()
def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Compute with the model's parts and ask servers too: half a minute.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON list of objects: state, what, words.")] = False,
) -> None:
    """Check this machine and the project: what is well, what to do about what is not. Exit code 1 where one fails."""
    from pipeline.cli.doctor import report

    if not report(deep, json):
        raise typer.Exit(1)
