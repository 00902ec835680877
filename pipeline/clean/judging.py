"""The first pass over a batch of texts: rewrite each, then find the first rule that drops it by itself.

    judged = judge(texts, params.clean)      # a pyarrow StructArray of JUDGED, one row a text

No document's result depends on another's, so batches can be cut and spread over machines in any way.
"""

import hashlib
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clean.characters import Characters, slices
from pipeline.clean.rules import REWRITES, active
from pipeline.documents.shards import byte_lengths
from pipeline.params import Clean

JUDGED = pa.struct(
    [
        ("text", pa.large_string()),
        ("key", pa.uint64()),  # hash of the text: its identity, and what decides its split
        ("reason", pa.uint8()),  # number of the rule that drops the document (`rules.active`); 0: it stays
        ("changed", pa.uint8()),  # bit i: REWRITES[i] changed the text
        ("bytes", pa.list_(pa.int64(), 1 + len(REWRITES))),  # before the first rewrite and after each
    ]
)


def judge(texts: pa.Array, params: Clean) -> pa.StructArray:
    """What the rules make of each text, and the number of the first rule that drops it by itself."""
    texts = texts.cast(pa.large_string())
    sizes = [byte_lengths(texts)]
    changed = np.zeros(len(texts), np.uint8)
    for bit, rule in enumerate(REWRITES):
        if rule.rewrite and rule.on(params):
            before, texts = texts, rule.rewrite(texts, params)
            changed |= pc.not_equal(before, texts).to_numpy(zero_copy_only=False).astype(np.uint8) << bit
        sizes.append(byte_lengths(texts))
    columns = [
        texts,
        pa.array(_keys(texts), pa.uint64()),
        pa.array(_reasons(texts, params), pa.uint8()),
        pa.array(changed),
        pa.FixedSizeListArray.from_arrays(pa.array(np.stack(sizes, axis=1).ravel()), 1 + len(REWRITES)),
    ]
    return pa.StructArray.from_arrays(columns, fields=list(JUDGED))


def _reasons(texts: pa.Array, params: Clean) -> np.ndarray:
    """Number of the first rule that drops each text; 0: none. uint8 [texts]"""
    reasons = np.zeros(len(texts), np.uint8)
    start = 0
    for part in slices(texts):
        batch, here = Characters(part), reasons[start : start + len(part)]
        for number, rule in active(params):
            if rule.drop:
                here[rule.drop(batch, params) & (here == 0)] = number
        start += len(part)
    return reasons


def _keys(texts: pa.Array) -> np.ndarray:
    """A 64-bit hash of each text: the same on every machine and for ever, since splits depend on it."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data) if data is not None else memoryview(b"")
    digests = [hashlib.blake2b(view[a:b], digest_size=8).digest() for a, b in pairwise(ends)]
    return np.frombuffer(b"".join(digests), "<u8")
