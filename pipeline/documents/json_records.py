"""Records out of JSON text: one a line, printed over several lines, or in arrays.

for place, record in records(chunks): ...       # ("line 3", {...}), ("record 7", {...}) within an array

Memory holds one record and a chunk; the time grows with the length of the text alone.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.documents import splitting
from pipeline.errors import UserError

_GAP = re.compile(r"[\s,\ufeff]*")  # a byte order mark as well: files may have been joined
_CUT = len("-Infinity")  # the longest token but a string: an error this near to the end may be a cut


def records(chunks: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Every (place, record). Raises UserError for what is not JSON, EOFError for an array without an end."""
    decoder, buffer, position, wanted = json.JSONDecoder(), "", 0, 0
    inside, line, number = False, 1, 0
    for chunk in itertools.chain(chunks, [""]):
        buffer, position = buffer[position:] + chunk, 0
        if chunk and len(buffer) < wanted:
            continue
        wanted = 0
        if buffer.isspace():  # however much there is
            line, buffer = line + buffer.count("\n"), ""
        while (start := _GAP.match(buffer, position).end()) < len(buffer):  # type: ignore[union-attr]
            line += buffer.count("\n", position, start)
            position = start
            if buffer[start] == ("]" if inside else "["):
                inside, position = not inside, start + 1
                continue
            place = f"record {number + 1}" if inside else f"line {line}"
            try:
                record, position = decoder.raw_decode(buffer, start)
            except json.JSONDecodeError as error:
                shown = repr(buffer[start : start + 60])
                if not chunk or (error.pos < len(buffer) - _CUT and not error.msg.startswith("Unterminated string")):
                    raise UserError(f"{place}: not JSON ({error.msg}): {shown}") from None
                if len(buffer) - start > splitting.MAX_DOCUMENT_CHARS:
                    bound = f"{splitting.MAX_DOCUMENT_CHARS:,} characters"
                    raise UserError(f"{place}: longer than {bound}, or it has no end: {shown}") from None
                wanted = min(2 * (len(buffer) - start), splitting.MAX_DOCUMENT_CHARS + 1)
                break
            except RecursionError:
                raise UserError(f"{place}: JSON that cannot be read: its brackets are nested too deeply") from None
            except ValueError:
                raise UserError(f"{place}: JSON that cannot be read: a number has thousands of digits") from None
            line += buffer.count("\n", start, position)
            number += 1
            yield place, record
        else:
            line += buffer.count("\n", position)
            position = len(buffer)
    if inside:
        raise EOFError("the JSON array has no end")
