"""The rules that rewrite a document by itself: repair, white space, Unicode form, personal data. Works on batches.

texts = tidy_whitespace(texts, params.clean)      # pyarrow arrays of large strings, in and out
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import partial

import ftfy
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.params import Clean

# What well-formed text of most languages consists of besides ASCII; nothing of it alone can be mojibake.
_CLEARLY_FINE = (
    r"^[\x00-\x7f\x{2013}\x{2014}\x{2018}\x{2019}\x{201c}\x{201d}\x{2026}\x{3000}-\x{30ff}\x{ff00}-\x{ffef}\p{Han}]*$"
)
# UTF-8 quotes read as CP1252 lose the closing one's last byte (0x9d is no character there). ftfy leaves what remains,
# or takes a space after it for the missing byte and makes a dagger of it.
_CP1252_OF_CONTINUATION = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ\u00a0-¿\u0080-\u009f"
_DAMAGED_PUNCTUATION = [(mark.encode().decode("sloppy-windows-1252"), mark) for mark in "–—‘’“”…"]  # ftfy's codec
_CUT_QUOTE = f"â€([^{_CP1252_OF_CONTINUATION}]|$)"

_NEWLINES = (r"\r\n?|[\x0b\x0c\x{85}\x{2028}\x{2029}]", "\n")
_CONTROLS = (r"[\x00-\x08\x0e-\x1f\x7f-\x{9f}\x{ad}\x{2060}\x{feff}]", "")  # and characters that nobody sees
# A zero-width space parts words where a script has no spaces (Thai to Myanmar, Khmer, Tai, Balinese, Javanese, …); the
# joiners U+200C and U+200D shape Indic, Persian and emoji, and are left alone everywhere.
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u1950-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaadf"
_STRAY_ZERO_WIDTH = re.compile(f"(?<![{_UNSPACED}])\u200b+(?![{_UNSPACED}])")
_TIDY = {
    "layout": (
        (r"[^ \x{3000}\P{Zs}]", " "),  # no-break, thin and wide spaces; lines of Chinese are indented by U+3000
        (r"(?m)[ \t]*\t[ \t]*$|^ +$", ""),
        (r"(?m)([^ \n]) $", r"\1"),
        (r"(?m) {3,}$", "  "),  # two spaces at the end of a line break it in Markdown
        (r"\A(?:[ \t]*\n)+", ""),
    ),
    "prose": (
        (r"[\t\p{Zs}]{2,}|\t|[^ \P{Zs}]", " "),  # what is already one plain space is not matched: that is most of them
        (r" \n ?|\n ", "\n"),
        (r"\n{3,}", "\n\n"),
        (r"\A\s+", ""),
    ),
}

_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_HEX, _NOT_A_WORD = "[0-9A-Fa-f]{1,4}", "[0-9A-Fa-f]{0,3}[0-9][0-9A-Fa-f]{0,3}"  # add::one is code, 2001::1 is not
_PERSONAL = (
    (r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}", "[email]"),
    (rf"\b(?:{_OCTET}\.){{3}}{_OCTET}\b", "[ip]"),
    (
        rf"\b(?:{_HEX}:){{7}}{_HEX}\b|\b(?:{_HEX}:){{2,6}}(?::{_HEX}){{1,5}}\b|\b{_NOT_A_WORD}:(?::{_HEX}){{1,6}}\b",
        "[ip]",
    ),
    (r"\+\d(?:[ .()-]{0,2}\d){7,14}\b|\(\d{3}\) ?\d{3}[ .-]\d{4}\b", "[phone]"),  # "+100 points" is none
    (r"\b\d{3}[.-]\d{3,4}[.-]\d{4}\b|\b1[3-9]\d{9}\b", "[phone]"),
)


def fix_encoding(texts: pa.Array, params: Clean) -> pa.Array:
    """ftfy's repair of mojibake alone: its straightening of quotes and the like would change what an author wrote."""
    return _where(_suspicious(texts), texts, _repaired)


def tidy_whitespace(texts: pa.Array, params: Clean) -> pa.Array:
    """No control characters, nothing blank at the end; "layout" keeps lines as they are set out, "prose" does not.

    layout: indentation, columns, blank lines and Markdown's line breaks stay; no other space ends a line.
    prose: one space between words, one blank line at most, no space at either end of a line.
    """
    steps = (_NEWLINES, _CONTROLS, *_TIDY[params.tidy_whitespace])
    untidy = "|".join(f"(?:{pattern})" for pattern, _ in steps) + r"|\x{200b}|[\s\p{Z}]\z"
    return _where(pc.match_substring_regex(texts, untidy), texts, partial(_tidied, steps))


def normalize(texts: pa.Array, params: Clean) -> pa.Array:
    """The text in `unicode_form`, by Python: pyarrow's utf8_normalize leaves "NFC" decomposed (seen with 25.0)."""
    form = params.unicode_form
    if form == "none":
        return texts
    return _where(pc.invert(pc.string_is_ascii(texts)), texts, partial(_each, partial(unicodedata.normalize, form)))


def mask_personal_data(texts: pa.Array, params: Clean) -> pa.Array:
    """Replace e-mail addresses, IP addresses and phone numbers by what they are, in brackets."""
    for pattern, marker in _PERSONAL:
        texts = _replaced(texts, pattern, marker)
    return texts


def _repaired(texts: pa.Array) -> pa.Array:
    for damaged, character in _DAMAGED_PUNCTUATION:
        texts = pc.replace_substring(texts, damaged, character)
    texts = pc.replace_substring_regex(texts, _CUT_QUOTE, r"”\1")
    return _where(_suspicious(texts), texts, lambda some: _each(ftfy.fix_encoding, some))


def _tidied(steps: Iterable[tuple[str, str]], texts: pa.Array) -> pa.Array:
    texts = _where(pc.match_substring(texts, "\u200b"), texts, partial(_each, partial(_STRAY_ZERO_WIDTH.sub, "")))
    for pattern, replacement in steps:
        texts = _replaced(texts, pattern, replacement)
    return pc.utf8_rtrim_whitespace(texts)


def _suspicious(texts: pa.Array) -> pa.Array:
    return pc.invert(pc.match_substring_regex(texts, _CLEARLY_FINE))


def _replaced(texts: pa.Array, pattern: str, replacement: str) -> pa.Array:
    """Replace a pattern where it is found: looking for it is ten times faster than rewriting."""
    found = pc.match_substring_regex(texts, pattern)
    return _where(found, texts, lambda some: pc.replace_substring_regex(some, pattern, replacement))


def _where(mask: pa.Array, texts: pa.Array, rewrite: Callable[[pa.Array], pa.Array]) -> pa.Array:
    some = texts.filter(mask)
    return pc.replace_with_mask(texts, mask, rewrite(some)) if len(some) else texts


def _each(rewrite: Callable[[str], str], texts: pa.Array) -> pa.Array:
    return pa.array(map(rewrite, texts.to_pylist()), texts.type)
