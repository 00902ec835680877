"""Data figures beside their references, in one run: `python -m benchmarks.data` prints a Markdown table.

Text is the bundled corpus. Cleaning and tokenizing run as in the stages (cleaning in fresh processes, as Daft wants
it); what tokenizing is compared with runs on the same text, in turns, and the median of a few turns counts. Memory
is the peak of fresh processes.
"""

import multiprocessing
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from pipeline import params
from pipeline.clean import cleaning
from pipeline.download import sources
from pipeline.tokenize import texts, tokenizer
from pipeline.tokenize import writer as tokens
from pipeline.tokens.store import TokenStore
from pipeline.tokens.tokenizer import load

app = typer.Typer(add_completion=False)
MB = 1e6


@app.command()
def main(
    documents: Annotated[
        int, typer.Option(help="Stories to measure with; memory is also measured with ten times.")
    ] = 44_000,
    turns: Annotated[int, typer.Option(help="Each figure is the median of so many.")] = 3,
    model_rate: Annotated[float, typer.Option(help="Tokens per second that the default model trains on.")] = 39_000,
    params_file: Annotated[Path, typer.Option("--params", help="Parameters of the run.")] = Path("params.yaml"),
) -> None:
    """Measure cleaning, tokenizing, memory and reading; print the table."""
    asked = params.load(params_file)
    rows: list[tuple[str, str, str, str, str]] = []
    with TemporaryDirectory() as folder:
        work = Path(folder)
        _corpus(documents, work / "small")
        _corpus(10 * documents, work / "large")
        rows += _cleaning(asked, work / "small", turns)
        tokenizer.build(asked.tokenizer, work / "small/clean", work / "tokenizer")
        rows += _tokenizing(asked, work, turns)
        rows += _memory(asked, work)
        rows += _reading(asked, work / "tokens/train", model_rate)
    print(_where())
    _print_table(("what", "measured", "reference", "measured / reference", "goal"), rows)


def _corpus(documents: int, into: Path) -> None:
    """Bundled stories as raw shards, told in another process so that no memory of it stays here."""
    asked = params.Bundled(
        source="bundled",
        watch="",
        max_documents=None,
        max_bytes=None,
        sample_fraction=1.0,
        seed=0,
        documents=documents,
    )
    _apart(sources.download, asked, into / "raw")


# --- the rows ---------------------------------------------------------------------------------------------------------


def _cleaning(asked: params.Params, corpus: Path, turns: int) -> Iterator[tuple[str, str, str, str, str]]:
    near = asked.clean.near_duplicates
    size = _text_bytes(corpus / "raw")
    for enabled, goal in ((False, 20), (True, 4)):
        how = asked.clean.model_copy(update={"near_duplicates": near.model_copy(update={"enabled": enabled})})
        took = median(_apart(_clean_seconds, how, corpus) for _ in range(turns))
        name = "cleaning, near duplicates too (MinHash LSH)" if enabled else "cleaning, without near duplicates"
        yield name, f"{size / MB / took:.1f} MB/s", "", "", f"≥ {goal} MB/s"


def _tokenizing(asked: params.Params, work: Path, turns: int) -> Iterator[tuple[str, str, str, str, str]]:
    """`tokens.write`, `encode_batch_fast` on texts that are in memory, litgpt's TextFiles; the same tokenizer."""
    clean, vocabulary = work / "small/clean", work / "tokenizer"
    encoder = load(vocabulary)
    cleaned = [text for split in ("train", "val") for batch in texts.batches(clean / split) for text in batch]
    size = sum(len(text.encode()) for text in cleaned)

    def alone() -> None:
        for start in range(0, len(cleaned), 2000):
            encoder.encode_batch_fast(cleaned[start : start + 2000], add_special_tokens=False)

    alone()  # both begin with a warm cache of files and words
    turns_ours, turns_bare = [], []
    for _ in range(turns):
        turns_ours.append(_timed(lambda: tokens.write(asked.tokenizer, vocabulary, clean, work / "tokens")))
        turns_bare.append(_timed(alone))
    ours, bare = median(turns_ours), median(turns_bare)
    rate = size / MB / ours
    yield (
        "tokenizing, files to files, against `encode_batch_fast` alone",
        f"{rate:.2f} MB/s",
        f"{size / MB / bare:.2f} MB/s",
        f"{bare / ours:.2f}",
        "≥ 0.9",
    )
    theirs = _timed(lambda: _text_files(cleaned, vocabulary, work / "litgpt"))
    yield (
        "tokenizing, files to files, against litgpt's `TextFiles.prepare_data`",
        f"{rate:.2f} MB/s",
        f"{size / MB / theirs:.2f} MB/s",
        f"{theirs / ours:.1f}",
        "≥ 8",
    )


def _text_files(cleaned: list[str], vocabulary: Path, folder: Path) -> None:
    from litgpt.data import TextFiles
    from litgpt.tokenizer import Tokenizer

    folder.mkdir()
    n_files = 1 + (os.cpu_count() or 1)  # the first one becomes val
    for i in range(n_files):
        (folder / f"{i}.txt").write_text("\n\n".join(cleaned[i::n_files]), encoding="utf-8")
    data = TextFiles(folder)
    lit = Tokenizer(vocabulary)
    lit.bos_id = lit.eos_id  # which it demands of every tokenizer
    data.connect(lit, batch_size=1, max_seq_length=256)
    data.prepare_data()


def _memory(asked: params.Params, work: Path) -> Iterator[tuple[str, str, str, str, str]]:
    for name, steps in (("cleaning", _clean_once), ("tokenizing", _tokenize_once)):
        small, large = (_apart(steps, asked, work / size, work / "tokenizer") for size in ("small", "large"))
        yield (
            f"peak memory of {name}, ten times the text",
            f"{large / MB:,.0f} MB",
            f"{small / MB:,.0f} MB",
            f"{large / small:.2f}",
            "< 1.2",
        )


def _reading(asked: params.Params, folder: Path, model_rate: float) -> Iterator[tuple[str, str, str, str, str]]:
    store = TokenStore(folder)
    length = asked.train.block_size + 1
    draw = random.Random(0)
    starts = [draw.randrange(store.n_tokens - length) for _ in range(20_000)]
    took = min(_timed(lambda: [store.read(start, start + length) for start in starts]) for _ in range(3))
    rate = len(starts) * length / took
    yield (
        f"reading tokens, samples of {length} at random, one process",
        f"{rate / 1e6:.1f} M tokens/s",
        f"{model_rate:,.0f} tokens/s (the default model)",
        f"{rate / model_rate:,.0f}",
        "≥ 50",
    )


# --- measuring --------------------------------------------------------------------------------------------------------


def _clean_seconds(asked: params.Clean, corpus: Path) -> float:
    return _timed(lambda: cleaning.clean(asked, corpus / "raw", corpus / "clean", corpus / "plots"))


def _clean_once(asked: params.Params, corpus: Path, _: Path) -> float:
    cleaning.clean(asked.clean, corpus / "raw", corpus / "clean", corpus / "plots")
    return _peak()


def _tokenize_once(asked: params.Params, corpus: Path, vocabulary: Path) -> float:
    tokens.write(asked.tokenizer, vocabulary, corpus / "clean", corpus / "tokens")
    return _peak()


def _peak() -> float:
    """The most memory that this process has held, bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure would count what the parent held when it started us
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))
        assert found is not None
        return float(found[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _apart(function: Callable[..., Any], *arguments: object) -> Any:
    """Call in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _timed(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def _text_bytes(folder: Path) -> int:
    return sum(len(text.encode()) for batch in texts.batches(folder) for text in batch)


def _where() -> str:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    machine = f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}, Python {platform.python_version()}"
    return f"{machine}; commit {commit.stdout.strip()}; `python -m benchmarks.data {' '.join(sys.argv[1:])}`\n"


def _print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    for cells in (head, ("---",) * len(head), *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    app()
