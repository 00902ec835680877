"""What cleaning does to one document by itself: repair, normalise, mask, and reasons to drop it. Works on batches.

    scrubbed = scrub(texts, params.clean)      # a pyarrow StructArray of SCRUBBED, one row a text

No document's result depends on another's, so batches can be cut and spread over machines in any way.
"""

import hashlib
import unicodedata
from functools import partial
from itertools import pairwise
from typing import Literal

import ftfy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clean import quality
from pipeline.documents.shards import byte_lengths
from pipeline.params import Clean

REWRITES = ("fix_encoding", "tidy_whitespace", "unicode_form", "mask_personal_data")
REASONS = ("kept", "too_short", "too_long", "script", *quality.RULES)  # a document's reason is an index into these
SCRUBBED = pa.struct(
    [
        ("text", pa.large_string()),
        ("key", pa.uint64()),  # hash of the text: its identity, and what decides its split
        ("reason", pa.uint8()),
        ("changed", pa.uint8()),  # bit i: REWRITES[i] changed the text
        ("bytes", pa.list_(pa.int64(), 1 + len(REWRITES))),  # before the first rewrite and after each
    ]
)

# What well-formed text of most languages consists of besides ASCII; nothing of it alone can be mojibake.
_CLEARLY_FINE = (
    r"^[\x00-\x7f\x{2013}\x{2014}\x{2018}\x{2019}\x{201c}\x{201d}\x{2026}\x{3000}-\x{30ff}\x{ff00}-\x{ffef}\p{Han}]*$"
)
# UTF-8 quotes read as CP1252 lose the closing one's last byte (0x9d is no character there). ftfy leaves what remains,
# or takes a space after it for the missing byte and makes a dagger of it.
_CP1252_OF_CONTINUATION = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ\u00a0-¿\u0080-\u009f"
_DAMAGED_PUNCTUATION = [(mark.encode().decode("sloppy-windows-1252"), mark) for mark in "–—‘’“”…"]  # ftfy's codec
_CUT_QUOTE = f"â€([^{_CP1252_OF_CONTINUATION}]|$)"

_NEWLINES = r"\r\n?|[\x0b\x0c\x{85}\x{2028}\x{2029}]"
_INVISIBLE = r"[\x00-\x08\x0e-\x1f\x7f-\x{9f}\x{ad}\x{200b}\x{2060}\x{feff}]"
_UNTIDY = rf"{_NEWLINES}|{_INVISIBLE}|\t|[^ \P{{Zs}}]|  | \n|\n |\n\n\n|^\s|\s$"
_TIDY = (
    (_NEWLINES, "\n"),
    (_INVISIBLE, ""),
    (r"[\t\p{Zs}]{2,}|\t|[^ \P{Zs}]", " "),  # what is already one plain space is not matched: that is most of them
    (r" \n ?|\n ", "\n"),
    (r"\n{3,}", "\n\n"),
)

_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_HEX, _NOT_A_WORD = "[0-9A-Fa-f]{1,4}", "[0-9A-Fa-f]{0,3}[0-9][0-9A-Fa-f]{0,3}"  # add::one is code, 2001::1 is not
_PERSONAL = (
    (r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}", "[email]"),
    (rf"\b(?:{_OCTET}\.){{3}}{_OCTET}\b", "[ip]"),
    (
        rf"\b(?:{_HEX}:){{7}}{_HEX}\b|\b(?:{_HEX}:){{2,6}}(?::{_HEX}){{1,5}}\b|\b{_NOT_A_WORD}:(?::{_HEX}){{1,6}}\b",
        "[ip]",
    ),
    (r"\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}\b|\(\d{3}\) ?\d{3}[ .-]\d{4}\b", "[phone]"),
    (r"\b\d{3}[.-]\d{3,4}[.-]\d{4}\b|\b1[3-9]\d{9}\b", "[phone]"),
)


def scrub(texts: pa.Array, params: Clean) -> pa.StructArray:
    """Rewrite each text as the params say, then find the first reason to drop it (index into REASONS; 0: none)."""
    texts = texts.cast(pa.large_string())
    sizes = [byte_lengths(texts)]
    changed = np.zeros(len(texts), np.uint8)
    for bit, name in enumerate(REWRITES):
        if getattr(params, name) not in (False, "none"):
            before, texts = texts, _rewrite(name, texts, params)
            changed |= pc.not_equal(before, texts).to_numpy(zero_copy_only=False).astype(np.uint8) << bit
        sizes.append(byte_lengths(texts))
    columns = [
        texts,
        pa.array(_keys(texts), pa.uint64()),
        pa.array(_reasons(texts, params), pa.uint8()),
        pa.array(changed),
        pa.FixedSizeListArray.from_arrays(pa.array(np.stack(sizes, axis=1).ravel()), 1 + len(REWRITES)),
    ]
    return pa.StructArray.from_arrays(columns, fields=list(SCRUBBED))


def _rewrite(name: str, texts: pa.Array, params: Clean) -> pa.Array:
    if name == "fix_encoding":
        return _where(_suspicious(texts), texts, _fix_encoding)
    if name == "tidy_whitespace":
        return _where(pc.match_substring_regex(texts, _UNTIDY), texts, _tidy)
    if name == "unicode_form" and params.unicode_form != "none":
        return _where(pc.invert(pc.string_is_ascii(texts)), texts, partial(_normalized, form=params.unicode_form))
    return mask_personal_data(texts)


def _where(mask: pa.Array, texts: pa.Array, rewrite) -> pa.Array:  # type: ignore[no-untyped-def]
    some = texts.filter(mask)
    return pc.replace_with_mask(texts, mask, rewrite(some)) if len(some) else texts


def _fix_encoding(texts: pa.Array) -> pa.Array:
    """ftfy's repair of mojibake alone: its straightening of quotes and the like would change what an author wrote."""
    for damaged, character in _DAMAGED_PUNCTUATION:
        texts = pc.replace_substring(texts, damaged, character)
    texts = pc.replace_substring_regex(texts, _CUT_QUOTE, r"”\1")
    return _where(_suspicious(texts), texts, lambda some: pa.array(map(ftfy.fix_encoding, some.to_pylist()), some.type))


def _suspicious(texts: pa.Array) -> pa.Array:
    return pc.invert(pc.match_substring_regex(texts, _CLEARLY_FINE))


def _replaced(texts: pa.Array, pattern: str, replacement: str) -> pa.Array:
    """Replace a pattern where it is found: looking for it is ten times faster than rewriting."""
    found = pc.match_substring_regex(texts, pattern)
    return _where(found, texts, lambda some: pc.replace_substring_regex(some, pattern, replacement))


def _normalized(texts: pa.Array, form: Literal["NFC", "NFKC"]) -> pa.Array:
    """Python's normal form: pyarrow's utf8_normalize leaves "NFC" decomposed (seen with 25.0)."""
    return pa.array([unicodedata.normalize(form, text) for text in texts.to_pylist()], texts.type)


def _tidy(texts: pa.Array) -> pa.Array:
    """No control or invisible characters; one space, one blank line at most; nothing blank at the ends of lines."""
    for pattern, replacement in _TIDY:
        texts = _replaced(texts, pattern, replacement)
    return pc.utf8_trim_whitespace(texts)


def mask_personal_data(texts: pa.Array) -> pa.Array:
    """Replace e-mail addresses, IP addresses and phone numbers by what they are, in brackets."""
    for pattern, marker in _PERSONAL:
        texts = _replaced(texts, pattern, marker)
    return texts


def _keys(texts: pa.Array) -> np.ndarray:
    """A 64-bit hash of each text: the same on every machine and for ever, since splits depend on it."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data) if data is not None else memoryview(b"")
    digests = [hashlib.blake2b(view[a:b], digest_size=8).digest() for a, b in pairwise(ends)]
    return np.frombuffer(b"".join(digests), "<u8")


def _reasons(texts: pa.Array, params: Clean) -> np.ndarray:
    """Index into REASONS of the first rule that a text breaks."""
    chars = pc.utf8_length(texts).to_numpy(zero_copy_only=False)
    broken = {"too_short": chars < max(1, params.min_chars)}
    if params.max_chars is not None:
        broken["too_long"] = chars > params.max_chars
    if params.script != "any" or params.quality.enabled:
        parts = [_broken(quality.Characters(part), params) for part in quality.slices(texts)]
        broken |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    reasons = np.zeros(len(texts), np.uint8)
    for name in reversed(REASONS):
        if name in broken:
            reasons[broken[name]] = REASONS.index(name)
    return reasons


def _broken(batch: quality.Characters, params: Clean) -> dict[str, np.ndarray]:
    broken = {}
    if params.script != "any":
        broken["script"] = quality.script_share(batch, params.script) < params.min_script_share
    if params.quality.enabled:
        broken |= quality.broken_rules(batch, params.quality)
    return broken
