"""What a person sees while a stage works: progress, remarks, errors. Plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)
_SECONDS_BETWEEN_LINES = 15.0


def say(text: str) -> None:
    _out.print(text, markup=False)


def warn(text: str) -> None:
    _err.print(f"warning: {text}", style="yellow", markup=False)


def fail(text: str) -> None:
    _err.print(f"error: {text}", style="red", markup=False)


def table(shown: Table) -> None:
    _out.print(shown, soft_wrap=False)


def duration(seconds: float) -> str:
    """Seconds in words: 4.2 s, 3 min 12 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(n_bytes: float) -> str:
    """Bytes in words, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


@contextmanager
def progress(what: str, total: float | None, unit: str) -> Iterator[Callable[..., None]]:
    """Show how far `what` is. Yields `advance(n, note="")`: `n` more of `unit` are done; `note` stands at the end."""
    if _out.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=_out, transient=True) as bar:
            task = bar.add_task(what, total=total, unit=unit, rate="", note="")

            def advance(n: float = 1, note: str = "") -> None:
                speed = bar.tasks[0].speed
                bar.update(task, advance=n, note=note, rate=f"({speed:,.0f}/s)" if speed else "")

            yield advance
        return

    begun = last = time.monotonic()
    done = 0.0

    def advance_plain(n: float = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        rate = done / (now - begun)
        line = f"{what}: {done:,.0f}"
        if total:
            line += f" of {total:,.0f} {unit} ({done / total:.0%}), {rate:,.0f}/s"
            line += f", {duration(max(0.0, total - done) / rate)} left" if rate else ""
        else:
            line += f" {unit}, {rate:,.0f}/s"
        say(f"{line} {note}".rstrip())

    yield advance_plain
