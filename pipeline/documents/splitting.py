"""How one text file falls into documents: by marker, by line, by blank line or whole, or as `guess` says.

for document in split(chunks, "blank_lines", "<|endoftext|>"): ...
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from statistics import median

from pipeline.errors import UserError

MAX_DOCUMENT_CHARS = 32 * 2**20  # what is held in memory at once; longer is a file with other marks than thought
_SENTENCE_ENDS = tuple(".!?…\"'”’»。！？」』")
_PARAGRAPH_BYTES = 100  # a line of this length was not broken to fit a page


def split(chunks: Iterable[str], how: str, separator: str) -> Iterator[str]:
    """Yield the documents of a text that arrives in chunks (line ends are `\\n`); none is only white space.

    how: separator | lines | blank_lines | whole | lone_newlines (blank lines stand between the paragraphs of a
    document, and a newline between two lines of text ends it; TinyStories samples look like this).
    Raises UserError for a document of more than MAX_DOCUMENT_CHARS characters.
    """
    if how == "separator":
        found: Iterator[str] = (piece.strip("\n") for piece in pieces(chunks, separator))
    elif how == "lines":
        found = pieces(chunks, "\n")
    else:
        found = _grouped(pieces(chunks, "\n"), how)
    for document in found:
        if document and not document.isspace():
            yield document


def guess(sample: str, separator: str) -> tuple[str, str]:
    """How a text that begins with `sample` should be split, and why, in words."""
    if separator in sample:
        return "separator", f"{separator} stands in it"
    lines = sample.split("\n")[:-1] or [sample]  # the last line may be cut
    filled = [line for line in lines if line.strip()]
    if len(filled) < 2:
        return "whole", "it is one line"
    lone = [a for a, b in pairwise(lines) if _text_to_text(a, b)]
    gaps = sum(1 for a, b in pairwise(lines) if a.strip() and not b.strip())
    ended = sum(line.rstrip().endswith(_SENTENCE_ENDS) for line in lone) / max(1, len(lone))
    long_lines = median(len(line.encode()) for line in filled) >= _PARAGRAPH_BYTES
    if not gaps:
        if long_lines or ended >= 0.8:
            return "lines", "it has no blank lines, and its lines are whole sentences"
        return "whole", "it has no blank lines, and its lines break within sentences"
    if lone and len(lone) < gaps and long_lines and ended >= 0.8:
        return "lone_newlines", (
            f"blank lines ({gaps}) stand between paragraphs, and the rarer single line breaks ({len(lone)}) end stories"
        )
    return "blank_lines", f"{gaps} blank lines stand between blocks of text"


def _text_to_text(line: str, following: str) -> bool:
    """Whether only a newline stands between two lines; a space beside it is a soft break within a document."""
    return bool(line and following) and not line[-1].isspace() and not following[0].isspace()


def _grouped(lines: Iterator[str], how: str) -> Iterator[str]:
    document: list[str] = []
    size = 0
    for line in lines:
        ends = not line.strip() if how == "blank_lines" else False
        if how == "lone_newlines" and document:
            ends = _text_to_text(document[-1], line)
        if ends and document:
            yield "\n".join(document)
            document, size = [], 0
        document.append(line)
        size += len(line) + 1
        if size > MAX_DOCUMENT_CHARS:
            raise _too_long(document[0])
    yield "\n".join(document)


def pieces(chunks: Iterable[str], mark: str) -> Iterator[str]:
    """What stands between the marks; UserError for a piece beyond MAX_DOCUMENT_CHARS."""
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(mark)
        yield from whole
        if len(rest) > MAX_DOCUMENT_CHARS:
            raise _too_long(rest)
    if rest:
        yield rest


def _too_long(start: str) -> UserError:
    return UserError(
        f"the document that begins {start[:60]!r} is longer than {MAX_DOCUMENT_CHARS:,} characters; "
        "choose how the file falls into documents (download.split, download.separator)"
    )
