"""Which documents the files of a path give, before anything is written: `moe preview PATH`.

for line in preview(Path("stories.txt"), How("text", "auto", "<|endoftext|>")): print(line)
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from statistics import quantiles
from typing import cast

from pipeline.documents import splitting
from pipeline.documents.reading import ALLOWED, How, Opener, Reader, not_data, settle, warn_left_out
from pipeline.errors import UserError

MAX_DOCUMENTS = 10_000  # read for a preview
_FIRST, _CHARS = 3, 600  # documents that are shown, and characters of each


def preview(path: Path, how: How) -> Iterator[str]:
    """Lines to print: how many documents, how long, the first ones. What `split: auto` takes is said while reading.

    Raises UserError for a path that leads nowhere and for a file that cannot be read.
    """
    if how.split not in (allowed := ("auto", *splitting.WAYS)):
        raise UserError(f"--split {how.split}: no way of splitting; allowed: {', '.join(allowed)}")
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    names = {file: file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files}
    left_out = {names[file]: why for file in files if path.is_dir() and (why := not_data(names[file]))}
    warn_left_out(str(path), left_out)
    opened = [(names[file], cast(Opener, partial(file.open, "rb"))) for file in files if names[file] not in left_out]
    if not opened:
        raise UserError(f"{path}: no file of a known type; {ALLOWED}")
    guesses: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    how = settle(opened, how, guesses)
    found = chain.from_iterable(_documents(name, open, how, guesses, dropped) for name, open in opened)
    documents = list(islice(found, MAX_DOCUMENTS))
    lengths = [len(text) for text in documents] or [0]
    tenths = quantiles(lengths * 2, n=10)  # twice: of a single document as well
    more = "the first " if len(documents) == MAX_DOCUMENTS else ""
    yield f"{more}{len(documents):,} documents of {len(opened):,} file{'s' if len(opened) > 1 else ''}"
    yield (
        f"characters: {min(lengths):,} to {max(lengths):,}, median {tenths[4]:,.0f}, "
        f"four in five between {tenths[0]:,.0f} and {tenths[8]:,.0f}"
    )
    yield from (f"left out: {number:,} documents: {why}" for why, number in dropped.items())
    for number, text in enumerate(documents[:_FIRST], start=1):
        more = f"… ({len(text):,} characters)" if len(text) > _CHARS else ""
        yield f"\n--- document {number} ---\n{text[:_CHARS]}{more}"


def _documents(name: str, opened: Opener, how: How, guesses: Counter[str], dropped: Counter[str]) -> Iterator[str]:
    with opened() as stream:
        yield from Reader(name, how, guesses, dropped).documents(stream)
