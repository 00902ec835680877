"""Text out of bytes: UTF-8, or what a byte order mark says. Anything else is refused with its place, never repaired.

for chunk in decoded(stream): ...           # line ends are "\\n"
"""

import codecs
import io
import re
from collections.abc import Iterator
from typing import IO

from charset_normalizer import from_bytes

from pipeline.errors import UserError

CHUNK = 2**20
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is the beginning of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_USUAL = ["utf_16_le", "utf_16_be", "gb18030", "big5", "cp932", "euc_jp", "cp949", "koi8_r", "cp874"]  # of old texts
_USUAL += [f"cp{number}" for number in range(1250, 1257)]
_PAGES = {
    b"version https://git-lfs.github.com/": "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    b"<!doctype html": "an HTML page; check where the file came from, or take the text out of the page",
    b"<html": "an HTML page; check where the file came from, or take the text out of the page",
    b"<!-- saved from": "an HTML page; take the text out of it",
    b"from: <saved by": "an HTML page; take the text out of it",
    b"<?xml": "XML; take the text out of it",
}
_OTHERS = {
    b"\x1f\x8b": "gzip; let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "zstd; let its name end in .zst",
    b"PK\x03\x04": "a zip archive (as .docx and .epub are); unpack it",
    b"BZh": "bzip2; unpack it",
    b"\xfd7zXZ": "xz; unpack it",
    b"%pdf-": "a PDF; take the text out of it",
    b"par1": "Parquet; let its name end in .parquet",
}
_CONTROLS = re.compile(r"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def peekable(stream: IO[bytes]) -> io.BufferedReader:
    """The stream, with `peek`."""
    return stream if hasattr(stream, "peek") else io.BufferedReader(stream, CHUNK)  # type: ignore


def refuse_odd(head: bytes, text: bool) -> None:
    """Raise UserError if a file begins as one of another kind than its name says. text: it should be text."""
    head = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    for sign, words in (_PAGES | _OTHERS if text else _PAGES).items():
        if head.startswith(sign.lower()):
            raise UserError(f"its content is {words}")


def decoded(stream: IO[bytes]) -> Iterator[str]:
    """The text in chunks, without a byte order mark. Raises UserError for bytes that are no text, with their place."""
    block = stream.read(CHUNK)
    encoding = next((name for mark, name in _MARKS.items() if block.startswith(mark)), "utf-8")
    newlines = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    seen, line = 0, 1
    while True:
        seen += len(block)
        try:
            text = newlines.decode(block, final=not block)
        except UnicodeDecodeError as error:
            start = seen - len(error.object) + error.start
            line += error.object[: error.start].count(b"\n")
            byte = f"byte 0x{error.object[error.start]:02x}"
            name = encoding.removesuffix("-sig").upper()
            advice = _advice(error.object, error.start) if name == "UTF-8" else error.reason
            raise UserError(f"line {line}, byte {start}: not {name} ({byte}); {advice}") from None
        if "\0" in text:
            line += text.count("\n", 0, text.index("\0"))
            if "UTF-16" not in (advice := _advice(block, 0)):
                advice = "this is binary, or damaged; `tr -d '\\000'` removes such characters"
            raise UserError(f"line {line}: a NUL character, which text never contains; {advice}")
        if seen <= CHUNK and _is_binary(text):
            raise UserError("more than 1 in 100 characters are control characters: this is not text")
        line += text.count("\n")
        if text:
            yield text
        if not block:
            return
        block = stream.read(CHUNK)


def _is_binary(text: str) -> bool:
    return len(_CONTROLS.findall(text)) > len(text) // 100


def _advice(block: bytes, bad: int) -> str:
    """What bytes that are not UTF-8 may be, and what to do."""
    valid = block.decode(errors="ignore")
    several = sum(len(character.encode()) for character in valid if character > "\x7f")
    if bad and several > len(block) - len(valid.encode()):
        return (
            "the rest is UTF-8, so this place is damaged; repair it, or drop such bytes: `iconv -c -f UTF-8 -t UTF-8`"
        )
    start = max(0, bad - 4096) & ~3
    found = from_bytes(block[start : start + 8192], cp_isolation=_USUAL)
    names = {}
    for match in list(found)[:2]:
        encoding = "cp1252" if "cp1252" in match.could_be_from_charset else match.encoding
        text = str(match)
        if _is_binary(text):
            continue
        shown = re.search(r"[^\n]{0,12}[^\x00-\x7f][^\n]{0,12}", text) or re.match(r"[^\n]{0,24}", text)
        names[encoding.upper().replace("UTF_16_", "UTF-16").replace("_", "-")] = repr(shown[0] if shown else text)
    if not names:
        return "no usual encoding gives text: it is binary, or damaged"
    maybe = ", or ".join(f"{name} (it would read {text})" for name, text in names.items())
    return f"it may be {maybe}; convert it: `iconv -f {next(iter(names))} -t UTF-8`"
