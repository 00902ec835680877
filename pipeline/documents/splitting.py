"""How one text file is split into documents: by separator, line or blank line, not at all, or as `guess` says.

for document in split(chunks, "blank_lines", "<|endoftext|>"): ...
guess(sample, "<|endoftext|>").how          # "lone_newlines"
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from pipeline.errors import UserError

MAX_DOCUMENT_CHARS = 32 * 2**20  # held in memory at once; a longer document comes from another kind of separation
BOUNDARIES = {
    "lines": r"\n(?:\s*\n)?",
    "blank_lines": r"\n\s*\n",
    "wide_blank_lines": r"\n(?:[^\S\n]*\n){2,}",
    "lone_newlines": r"\n(?<=\S\n)(?=\S)",  # white space beside it makes it a soft break within a document
    "whole": r"\0",  # which no text holds
}
WAYS = ("separator", "separator_lines", *BOUNDARIES)  # the values of download.split but `auto`
_SENTENCE_ENDS = tuple(".!?…\"'”’»。！？」』")
_PARAGRAPH_BYTES = 100  # a line of this length was not broken to fit a page
_ALIKE = 8  # the longest documents, but for a tenth, have at most this times the length of the shortest
_FEW = 5  # too few documents to compare
_LONG_GAP = re.compile(r"\n\s{64,}\n")
_SHORT = 2**18  # a sample of so many characters is the whole file
_RARE = 50  # a separator found once in more documents than this is only mentioned


class Guess(NamedTuple):
    """how: a value of download.split. why, look: words on what was seen, and on the documents that it gives.
    sure: these are alike in length."""

    how: str
    why: str
    look: str
    sure: bool


def split(chunks: Iterable[str], how: str, separator: str) -> Iterator[str]:
    """Yield the documents of a text that arrives in chunks (line ends are `\\n`).

    how: separator | separator_lines (it stands alone on a line) | lines | blank_lines | wide_blank_lines (two or more;
    one separates paragraphs) | lone_newlines (blank lines separate paragraphs, and a newline between two lines of
    text ends the document; TinyStories samples look like this) | whole.
    Between two separators, what is only white space counts as a document: the empty text.
    Raises UserError for a document of more than MAX_DOCUMENT_CHARS characters.
    """
    marked = how.startswith("separator")
    chunks = from_first_text(chunks)
    if how in BOUNDARIES and how != "whole":
        chunks = (_LONG_GAP.sub("\n\n\n", chunk) for chunk in chunks)
    found = _pieces(chunks, _boundary(how, separator))
    for number, piece in enumerate(found):
        document = piece.strip("\n")
        if document and not document.isspace():
            yield document
        elif marked and number:
            yield ""


def from_first_text(chunks: Iterable[str]) -> Iterator[str]:
    """The chunks without the blank lines that they begin with, however many."""
    start, chunks = "", iter(chunks)
    for chunk in chunks:
        text = (start + chunk).lstrip()
        blank = (start + chunk).removesuffix(text)
        start = blank[blank.rfind("\n") + 1 :][-_SHORT:] + text
        if text:
            break
    return itertools.chain([start], chunks)


def guess(sample: str, separator: str) -> Guess:
    """How a text that begins with `sample` should be split.

    The right way shows in the lengths: documents of one file are similar, pieces between chance marks are not.
    """
    by_layout = _by_layout(sample)
    places = [found.start() for found in re.finditer(re.escape(separator), sample)]
    if not places:
        return by_layout
    alone = sum(line.rstrip() == separator for line in sample.split("\n"))
    set_apart = sum(_ends_a_document(sample, place, place + len(separator)) for place in places)
    others = _lengths(sample, by_layout.how, separator)
    rare = len(places) * _RARE < len(others) and by_layout.sure and (not alone or len(places) < 3)
    if rare or 2 * set_apart < len(places):
        return by_layout._replace(why=f"{by_layout.why}; {separator} is only mentioned")
    how = "separator_lines" if alone > 0.9 * len(places) else "separator"
    return _guess(sample, how, f"{separator} separates documents", separator)


def _by_layout(sample: str) -> Guess:
    lines = sample.split("\n")
    lines = lines[:-1] if len(lines) > 2 else lines  # the last one may be cut
    filled = [line for line in lines if line.strip()]
    if len(filled) < 2:
        return _guess(sample, "lines" if len(sample) > _SHORT and filled else "whole", "it is one line")
    lone = [a for a, b in pairwise(lines) if re.search(BOUNDARIES["lone_newlines"], f"{a[-1:]}\n{b[:1]}")]
    gaps = sum(1 for a, b in pairwise(lines) if a.strip() and not b.strip())
    ended = sum(line.rstrip().endswith(_SENTENCE_ENDS) for line in lone) >= 0.8 * max(1, len(lone))
    long_lines = median(len(line.encode()) for line in filled) >= _PARAGRAPH_BYTES
    if not gaps and (long_lines or ended):
        return _guess(sample, "lines", "it has no blank lines, and its lines are whole sentences")
    if not gaps:
        return _guess(sample, "whole", "it has no blank lines, and its lines break within sentences")
    tried = []
    if lone and len(lone) < gaps and long_lines and ended:
        why = "blank lines separate paragraphs, and the rarer single line breaks end documents"
        tried.append(_guess(sample, "lone_newlines", why))
    if _FEW <= len(_lengths(sample, "wide_blank_lines")) <= gaps / 2:
        why = "single blank lines separate paragraphs, and wider gaps separate documents"
        tried.append(_guess(sample, "wide_blank_lines", why))
    tried.append(_guess(sample, "blank_lines", "blank lines separate blocks of text"))
    if len(lone) > 10 * gaps and (long_lines or ended):
        by_line = _guess(sample, "lines", "its lines are whole sentences, and blank lines are rare")
        tried.insert(0 if gaps < _FEW and long_lines else len(tried), by_line)
    safest = next(one for one in tried if one.how == "blank_lines")
    return next((one for one in tried if one.sure), safest)


def _guess(sample: str, how: str, why: str, separator: str = "") -> Guess:
    lengths = sorted(_lengths(sample, how, separator)) or [0]
    first = next(split([sample], how, separator), "")
    tenth = len(lengths) // 10
    sure = len(lengths) < _FEW or lengths[-1 - tenth] <= _ALIKE * lengths[tenth]
    look = f"one document of {lengths[0]:,} characters"
    if len(lengths) > 1:
        look = f"{len(lengths):,} documents in its first {len(sample):,} characters, "
        look += f"of {lengths[0]:,} to {lengths[-1]:,}, median {median(lengths):,.0f}"
    return Guess(how, why, f"{look}; the first begins {first[:60]!r}", sure)


def _lengths(sample: str, how: str, separator: str = "") -> list[int]:
    """Characters of each document of a sample; without the last, which may be cut, where there are more."""
    lengths = [len(document) for document in split([sample], how, separator) if document]
    return lengths[:-1] if len(lengths) > 1 and len(sample) > _SHORT else lengths


def _ends_a_document(text: str, start: int, end: int) -> bool:
    """Whether the separator is at an end of its line or after a sentence, where a mere mention seldom is."""
    before, after = text[max(0, start - 80) : start].rpartition("\n")[2].rstrip(), text[end : end + 80]
    return not before or not after.partition("\n")[0].strip() or bool(re.search(r"[.!?…。！？][\"'”’»」』)]*$", before))


def _boundary(how: str, separator: str) -> re.Pattern[str]:
    mark = re.escape(separator)
    if how == "separator_lines":
        return re.compile(rf"{mark}(?<=\n{mark})[^\S\n]*(?=\n|\Z)")  # begins with plain text, which is found fast
    return re.compile(mark if how == "separator" else BOUNDARIES[how])


def _pieces(chunks: Iterable[str], boundary: re.Pattern[str]) -> Iterator[str]:
    """What is between the boundaries. Raises UserError for a piece beyond MAX_DOCUMENT_CHARS."""
    rest = "\n"  # the text begins a line
    for chunk in itertools.chain(chunks, [None]):
        rest, start = rest + (chunk or ""), 0
        for found in boundary.finditer(rest):
            if chunk is not None and found.end() == len(rest):  # it may go on in the next chunk
                break
            yield rest[start : found.start()]
            start = found.end()
        rest = rest[start:]
        if len(rest) > MAX_DOCUMENT_CHARS:
            raise UserError(
                f"the document that begins {rest.strip()[:60]!r} is longer than {MAX_DOCUMENT_CHARS:,} characters; "
                "choose how the file is split into documents (download.split, download.separator)"
            )
    if rest.strip():
        yield rest
