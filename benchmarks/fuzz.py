"""Damaged inputs by the thousand: each must be read or refused in words, never end in a traceback, a crash or a hang.

    python -m benchmarks.fuzz files --count 2000 --seed 0
    python -m benchmarks.fuzz params --count 10000 --seed 0

Exit code 1 if one does. The same seed gives the same inputs.
"""

import gzip
import io
import multiprocessing
import os
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Annotated, Any
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED

import typer
import zstandard

from pipeline.documents.reading import How, Reader
from pipeline.errors import UserError
from pipeline.params import read, validate
from pipeline.train import memory, plan
from tests.documents.formats import STORIES, as_json, as_jsonl, as_parquet, as_tar, as_text, as_zip
from tests.params.mutating import mutated

app = typer.Typer(add_completion=False, help=__doc__)
SECONDS = 20.0  # for one input; a whole one takes milliseconds
MEMORY = 8 * 2**30  # bytes of address space for one input

_PLAIN = {".txt": as_text, ".jsonl": as_jsonl, ".json": as_json, ".parquet": as_parquet}
_PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@app.command()
def files(
    count: Annotated[int, typer.Option(min=1, help="Inputs to try.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same inputs.")] = 0,
) -> None:
    """Mutate valid files of every format (bytes flipped, cut, inserted, spliced) and read each."""
    counts: Counter[str] = Counter()
    by_format: dict[str, Counter[str]] = {}
    for (name, _), (verdict, words) in verdicts(mutations(count, seed)):
        counts[verdict] += 1
        by_format.setdefault(name.partition(".")[2], Counter())[verdict] += 1
        if verdict in ("traceback", "hang"):
            typer.echo(f"{name}: {verdict}\n{words}")
    for form, some in sorted(by_format.items()):
        typer.echo(f"{form:14} " + ", ".join(f"{number:5} {verdict}" for verdict, number in sorted(some.items())))
    typer.echo(
        f"{count} inputs, seed {seed}: " + ", ".join(f"{number} {what}" for what, number in counts.most_common())
    )
    raise typer.Exit(1 if counts["traceback"] or counts["hang"] else 0)


@app.command()
def params(
    count: Annotated[int, typer.Option(min=1, help="Parameters to try.")] = 10_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same parameters.")] = 0,
) -> None:
    """Mutate params.yaml; each must be valid, and the model and the plan be counted, or be refused in words."""
    counts: Counter[str] = Counter()
    for changed, (verdict, words) in parameter_verdicts(count, seed):
        counts[verdict] += 1
        if verdict in ("traceback", "hang"):
            typer.echo(f"{changed}: {verdict}\n{words}")
    typer.echo(
        f"{count} parameters, seed {seed}: " + ", ".join(f"{number} {what}" for what, number in counts.most_common())
    )
    raise typer.Exit(1 if counts["traceback"] or counts["hang"] else 0)


def parameter_verdicts(count: int, seed: int) -> Iterator[tuple[dict[str, Any], tuple[str, str]]]:
    """Every mutation of params.yaml with what came of it: ok, refused, traceback or hang, and the words."""
    whole, draw = read(Path("params.yaml")), random.Random(seed)
    signal.signal(signal.SIGALRM, _too_slow)
    for _ in range(count):
        changed = mutated(whole, draw)
        signal.alarm(round(SECONDS))
        try:
            valid = validate(changed)
            memory.needed(valid.model, valid.train, plan.weights(valid.model, 2048, None), 2048)
            verdict = ("ok", "")
        except UserError as error:
            verdict = ("refused", str(error))
        except TimeoutError:
            verdict = ("hang", f"nothing after {SECONDS:g} s")
        except Exception:
            verdict = ("traceback", traceback.format_exc())
        finally:
            signal.alarm(0)
        yield changed, verdict


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TimeoutError


def mutations(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of damaged files, of each format in turn; half of the packed ones are damaged before packing."""
    draw = random.Random(seed)
    whole = {form: write(STORIES) for form, write in _PLAIN.items()}
    members = {f"{n}{form}": data for n, (form, data) in enumerate(whole.items())}
    whole |= {".zip": as_zip(members), ".tar": as_tar(members)}
    kinds = [(form, packing) for form in whole for packing in _PACKED]
    for number in range(count):
        form, packing = kinds[number % len(kinds)]
        whole[".parquet"] = as_parquet(STORIES, compression=draw.choice(("none", "snappy", "zstd", "gzip", "brotli")))
        whole[".zip"] = as_zip(members, draw.choice((ZIP_STORED, ZIP_DEFLATED, ZIP_BZIP2, ZIP_LZMA)))
        pack, other = _PACKED[packing], whole[draw.choice(list(whole))]
        first = draw.random() < 0.5
        data = pack(_mutated(whole[form], other, draw) if first else whole[form])
        yield f"{number}{form}{packing}", data if first and packing else _mutated(data, other, draw)


def _mutated(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Between one and four changes."""
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(data) + 1), draw.choice((1, 1, 4, 16, 512))
        start = draw.randrange(len(other))
        inserted = draw.choice(
            (draw.randbytes(length), b"\0" * length, b"\xff" * length, other[start : start + length])
        )
        match draw.choice(("flip", "cut", "insert", "overwrite", "remove", "splice")):
            case "flip":
                data = data[:at] + bytes(b ^ 1 << draw.randrange(8) for b in data[at : at + 1]) + data[at + 1 :]
            case "cut":
                data = data[:at] if draw.random() < 0.3 else data
            case "insert":
                data = data[:at] + inserted + data[at:]
            case "overwrite":
                data = data[:at] + inserted + data[at + length :]
            case "remove":
                data = data[:at] + data[at + length :]
            case "splice":
                data = data[:at] + data[draw.randrange(len(data) + 1) :]
    return data


def verdicts(
    inputs: Iterator[tuple[str, bytes]], seconds: float = SECONDS
) -> Iterator[tuple[tuple[str, bytes], tuple[str, str]]]:
    """Every input with what came of it: ok, refused, traceback (a crash as well) or hang, and the words.

    They are read in a process of its own, which is started anew after a crash or a hang.
    """
    spawn = multiprocessing.get_context("spawn")
    worker, end = None, None
    for name, data in inputs:
        if worker is None or end is None:
            end, theirs = spawn.Pipe()
            worker = spawn.Process(target=_work, args=(theirs,), daemon=True)
            worker.start()
            theirs.close()
            end.recv()  # it is ready
        try:
            end.send((name, data))
            verdict = end.recv() if end.poll(seconds) else ("hang", f"nothing after {seconds:g} s")
        except (EOFError, ConnectionError):
            worker.join()
            verdict = ("traceback", f"the process ended with {worker.exitcode}")
        yield (name, data), verdict
        if verdict[0] == "hang" or not worker.is_alive():
            worker.kill()
            worker = None
    if worker is not None:
        worker.kill()


def _work(end: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = sys.stderr = nowhere  # of warnings and guesses
        end.send("ready")
        while True:
            end.send(_read(*end.recv()))


def _read(name: str, data: bytes) -> tuple[str, str]:
    try:
        for text in Reader(name, How("text", "auto", "<|endoftext|>")).documents(io.BytesIO(data)):
            text.encode()
    except UserError as error:
        words = str(error)
        return ("refused", words) if words.startswith(f"{name}: ") else ("traceback", f"it names no file: {words}")
    except BaseException:
        return "traceback", traceback.format_exc()
    return "ok", ""


if __name__ == "__main__":
    app()
