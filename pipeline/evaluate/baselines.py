"""Baselines: n-gram models over the same tokens and general compressors over the same text.

    bits_per_byte(train, val, order=5, vocab_size=2048)     # {"unigram": 2.11, "kneser_ney_5": 0.24, "gzip": 1.98, …}

Kneser-Ney is the interpolated, modified kind of Chen and Goodman (1998, TR-10-98), with three discounts an order and
the uniform distribution below the unigrams, so that the probabilities of all tokens sum to one in any context.
"""

import gzip
import lzma
from dataclasses import dataclass

import numpy as np
import zstandard

from pipeline.evaluate import metrics
from pipeline.evaluate.token_set import TokenSet

_LEAST_DISCOUNT = 0.01  # the estimate may be 0 or less; then some contexts would leave nothing for new tokens: p = 0
_SEPARATOR = b"\x00"  # between documents: as much as the EOS token tells a model


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length. An n-gram's number is its place in `keys`; its context is an (n-1)-gram's number."""

    keys: np.ndarray  # int64, sorted: context * vocab_size + token
    discounted: np.ndarray  # float64 per n-gram: (count - discount) / count of its context
    backoff: np.ndarray  # float64 per context: probability that is left for the shorter history; 1 for one never seen


class KneserNey:
    """An n-gram language model of a token sequence, in arrays; exact (no hashing), ready for any vocabulary.

    Memory: about 40 bytes for each training token and order. The sequence is taken whole, EOS tokens included, as
    the transformer sees it: an n-gram may cross the end of a document.
    """

    def __init__(self, tokens_N: np.ndarray, order: int, vocab_size: int) -> None:
        """`tokens_N`: integers in [0, vocab_size). `order`: longest n-gram, in tokens. Raises ValueError if empty."""
        if not len(tokens_N):
            raise ValueError("no tokens to count")
        self.vocab_size = vocab_size
        self._orders: list[_Order] = []
        tokens_N = tokens_N.astype(np.int64)
        order = min(order, len(tokens_N))
        keys, numbers, _ = _count(tokens_N)  # numbers[i]: the n-gram that starts at i, here for n = 1
        n_contexts = 1
        for n in range(1, order):
            longer_keys, longer_numbers, somewhere = _count(numbers[:-1] * vocab_size + tokens_N[n:])
            # how many different tokens come before an n-gram: the (n+1)-grams that end in it
            counts = np.bincount(numbers[somewhere + 1], minlength=len(keys))
            self._orders.append(_order(keys, counts, keys // vocab_size, n_contexts))
            n_contexts = len(keys)
            keys, numbers = longer_keys, longer_numbers
        self._orders.append(_order(keys, np.bincount(numbers), keys // vocab_size, n_contexts))

    def nats(self, tokens_N: np.ndarray) -> np.ndarray:
        """-log p of every token after the first given all before it (the last order - 1 count); float64 [N - 1]."""
        tokens_N = tokens_N.astype(np.int64)
        probability = np.full(len(tokens_N), 1 / self.vocab_size)
        context = np.zeros(len(tokens_N), np.int64)  # number of the (n-1)-gram before each token; -1: not known
        for table in self._orders:
            seen = context >= 0
            number = _find(table.keys, np.where(seen, context * self.vocab_size + tokens_N, -1))
            backoff = np.where(seen, table.backoff[context], 1.0)
            probability = probability * backoff + np.where(number >= 0, table.discounted[number], 0.0)
            context = np.concatenate([[-1], number[:-1]])  # what ends in the token before is the next, longer context
        return -np.log(probability[1:])


def bits_per_byte(train: TokenSet, val: TokenSet, order: int, vocab_size: int) -> dict[str, float]:
    """What each baseline needs for a byte of the val text: n-gram models counted on `train`, and compressors."""
    nats = {
        "unigram": unigram_nats(train.tokens_N, val.tokens_N, vocab_size),
        f"kneser_ney_{order}": KneserNey(train.tokens_N, order, vocab_size).nats(val.tokens_N),
    }
    found = {name: metrics.bits_per_byte(float(nats_N.sum()), val.n_bytes) for name, nats_N in nats.items()}
    return found | compressors(val.texts, train.texts)


def _count(keys_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct keys, sorted; the number of each position's key; one position of each key (as np.unique, but faster)."""
    order = np.argsort(keys_N)
    ordered = keys_N[order]
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    numbers = np.empty(len(keys_N), np.int64)
    numbers[order] = np.cumsum(begins) - 1
    return ordered[begins], numbers, order[begins]


def _order(keys: np.ndarray, counts: np.ndarray, context: np.ndarray, n_contexts: int) -> _Order:
    discount = _discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(context, weights=counts, minlength=n_contexts)
    left = np.bincount(context, weights=discount, minlength=n_contexts)
    known = total > 0
    backoff = np.where(known, left / np.where(known, total, 1), 1.0)
    return _Order(keys, np.where(counts > 0, (counts - discount) / np.maximum(total[context], 1), 0.0), backoff)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken from a count of 0, 1, 2 and 3 or more (Chen and Goodman, equation 26).

    Where a small text has no n-gram of one of these counts the estimate is undefined; one discount then serves all.
    """
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    share = n1 / (n1 + 2 * n2) if n1 else 0.5
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, share, share, share])
    three = [1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3]
    return np.array([0.0, *np.clip(three, _LEAST_DISCOUNT, [1.0, 2.0, 3.0])])


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The place of each wanted key in the sorted keys; -1 where it is not there."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def unigram_nats(train_N: np.ndarray, tokens_N: np.ndarray, vocab_size: int) -> np.ndarray:
    """-log p of every token after the first under the tokens' frequencies in `train_N`, one added to each count."""
    counts = np.bincount(train_N, minlength=vocab_size) + 1
    return -np.log(counts / counts.sum())[tokens_N[1:]]


def compressors(texts: list[str], train_texts: list[str]) -> dict[str, float]:
    """Bits per UTF-8 byte of the texts, one stream with a zero byte after each text.

    gzip -9, xz -9e and zstd -19 with a window over everything. `zstd_with_training_text` has the training text as a
    dictionary that costs nothing: the compressor's counterpart to having been trained on it (level 12, as searching
    megabytes at 19 takes longer than all else here). Left out where there is no training text.
    """
    data = _SEPARATOR.join(text.encode() for text in texts) + _SEPARATOR
    n_bytes = len(data) - len(texts)
    sizes = {
        "gzip": len(gzip.compress(data, 9)),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "zstd": len(zstandard.ZstdCompressor(compression_params=_zstd(19, len(data))).compress(data)),
    }
    if train_texts:
        known = _SEPARATOR.join(text.encode() for text in train_texts) + _SEPARATOR
        prefix = zstandard.ZstdCompressionDict(known, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        compressor = zstandard.ZstdCompressor(dict_data=prefix, compression_params=_zstd(12, len(known) + len(data)))
        sizes["zstd_with_training_text"] = len(compressor.compress(data))
    return {name: 8 * size / n_bytes for name, size in sizes.items()}


def _zstd(level: int, window_bytes: int) -> zstandard.ZstdCompressionParameters:
    """A window over everything (at most 1 GiB) and long-distance matching; the frame does not tell its length."""
    return zstandard.ZstdCompressionParameters.from_level(
        level, window_log=min(30, max(10, window_bytes.bit_length())), enable_ldm=True, write_content_size=0
    )
