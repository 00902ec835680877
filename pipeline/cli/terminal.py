"""What `moe generate` and `moe chat` do at the terminal: find the model, print as the text comes, read turns.

Texts go to standard output, remarks to standard error, so that a pipe gets the texts alone.
"""

import dataclasses
import json
import re
import sys
import tempfile
import time
from collections.abc import Generator as Pieces
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from pipeline import console, tracking
from pipeline.documents.decoding import decoded
from pipeline.errors import UserError
from pipeline.generate.chat import Chat
from pipeline.generate.generation import Completion, Generator
from pipeline.generate.sampling import Sampling
from pipeline.model import checkpoint_folder
from pipeline.model.checkpoint_folder import CONFIG, WEIGHTS
from pipeline.model.device import resolve

_LINE_ENDS = re.compile("[\x85\u2028\u2029]")  # that JSON allows in a line and many readers take for the end of one


@contextmanager
def opened(checkpoint: str, device: str) -> Iterator[Generator]:
    """The generator of a litgpt or Hugging Face folder, or of a W&B artifact `[entity/project/]name:alias`.

    Raises UserError for a folder that is neither, is damaged, or holds a model that is not ours to run.
    """
    where, folder = resolve(device, "--device"), Path(checkpoint)
    with tempfile.TemporaryDirectory(prefix="moe-generate-") as place:
        if ":" in checkpoint and not folder.exists() and not folder.is_absolute():
            folder = tracking.source_artifact(checkpoint, Path(place) / "artifact").path
        weights = folder
        if _is_huggingface(folder):
            from pipeline.export import card
            from pipeline.huggingface.folder import from_huggingface

            card.refuse_damage(folder, "*.safetensors")
            weights = Path(place) / "litgpt"
            from_huggingface(folder, weights)
        yield Generator(checkpoint_folder.load(weights, where), folder)


def _is_huggingface(folder: Path) -> bool:
    if not folder.is_dir() or any((folder / name).exists() for name in (CONFIG, WEIGHTS)):
        return False  # a litgpt folder may hold a config.json too
    if (folder / "config.json").is_file():
        return True
    raise UserError(
        f"{folder} holds no model: neither {WEIGHTS} with {CONFIG} (a litgpt checkpoint folder) nor config.json with "
        "*.safetensors (a Hugging Face folder)"
    )


def generate(generator: Generator, prompts: list[str], sampling: Sampling, as_json: bool) -> None:
    """Print each prompt with its continuation; a single one as it comes. As JSON: one object a line."""
    begun = time.monotonic()
    if as_json:
        for completion in generator.generate(prompts, sampling):
            line = json.dumps(dataclasses.asdict(completion), ensure_ascii=False)
            typer.echo(_LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", line))
        return
    if len(prompts) == 1:
        pieces = generator.stream(prompts[0], sampling)
        typer.echo(prompts[0], nl=False)
        completions = [_print_stream(pieces)]
    else:
        completions = generator.generate(prompts, sampling)
        for i, completion in enumerate(completions):
            typer.echo(("\n" if i else "") + completion.prompt + completion.text)
    n_tokens = sum(completion.n_tokens for completion in completions)
    seconds = time.monotonic() - begun
    _remark(f"[{n_tokens:,} tokens, {n_tokens / seconds:,.0f} tokens/s{_why(completions, generator, sampling)}]")


def chat(generator: Generator, sampling: Sampling) -> None:
    """Read lines until the input ends; print what the model makes of each. Ctrl-C ends an answer, then the chat."""
    talk = Chat(generator, sampling)
    typed = sys.stdin.isatty()
    if typed:
        how = "it answers" if talk.templated else "a base model: it goes on from your words"
        _remark(f"[{how}. An empty line: go on; /reset: start anew; /quit: end]")
    while (line := _read_line("> " if typed else "")) is not None and line.strip() != "/quit":
        if line.strip() == "/reset":
            talk.reset()
            _remark("[started anew]")
            continue
        try:
            pieces = talk.say(line)
            if talk.forgotten:
                _remark(f"[the context of {generator.context:,} tokens is full: {talk.forgotten} forgotten]")
            _print_stream(pieces)
        except UserError as error:
            if not typed:
                raise
            console.fail(str(error))
        except KeyboardInterrupt:
            typer.echo()


def _read_line(prompt: str) -> str | None:
    try:
        return input(prompt).removeprefix("\N{BYTE ORDER MARK}")  # where a file is piped in
    except (EOFError, KeyboardInterrupt):
        return None
    except UnicodeDecodeError as error:
        raise UserError(f"the input is not UTF-8 ({error})") from None


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file, a prompt each; UserError for a blank one, and for a file that is no text."""
    try:
        with path.open("rb") as file:
            lines = "".join(decoded(file)).removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise UserError(f"--prompts-file {path}: no such file") from None
    except OSError as error:
        raise UserError(f"--prompts-file {path}: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"--prompts-file {path}: {error}") from None
    if blank := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        raise UserError(f"--prompts-file {path}: line {blank[0]} is empty; one prompt a line")
    return lines


def _print_stream(pieces: Pieces[str, None, Completion]) -> Completion:
    try:
        while True:
            typer.echo(next(pieces), nl=False)
            sys.stdout.flush()
    except StopIteration as end:
        typer.echo()
        return end.value
    finally:
        pieces.close()


def _why(completions: list[Completion], generator: Generator, sampling: Sampling) -> str:
    full = sum(c.finish_reason == "length" and c.n_tokens < sampling.max_new_tokens for c in completions)
    if not full:
        return ""
    return f"; the context of {generator.context:,} tokens is full" + (f" in {full}" if len(completions) > 1 else "")


def _remark(text: str) -> None:
    typer.secho(text, dim=True, err=True)
