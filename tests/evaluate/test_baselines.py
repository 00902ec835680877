"""Kneser-Ney against the textbook's formulas on dictionaries; compressors against their own programs' output."""

import gzip
import math
from collections import Counter

import numpy as np
import pytest
import zstandard

from pipeline.evaluate import baselines
from pipeline.evaluate.baselines import KneserNey, compressors, unigram_nats


class Textbook:
    """Interpolated modified Kneser-Ney by the formulas, on tuples: slow and plain."""

    def __init__(self, tokens: list[int], order: int, vocab_size: int) -> None:
        self.order, self.vocab_size = order, vocab_size
        grams = [Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)) for n in range(order + 1)]
        self.counts = [Counter[tuple[int, ...]]() for _ in range(order + 1)]
        self.counts[order] = grams[order]
        for n in range(1, order):
            for gram in grams[n + 1]:
                self.counts[n][gram[1:]] += 1
        self.discounts = [None, *(self._discounts(self.counts[n]) for n in range(1, order + 1))]

    @staticmethod
    def _discounts(counts: Counter[tuple[int, ...]]) -> tuple[float, float, float]:
        n = [sum(1 for c in counts.values() if c == k) for k in range(5)]
        y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
        if 0 in n[1:]:
            return y, y, y
        three = (1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3])
        return tuple(min(max(d, baselines._LEAST_DISCOUNT), k) for d, k in zip(three, (1.0, 2.0, 3.0), strict=True))  # type: ignore[return-value]

    def p(self, token: int, history: tuple[int, ...], n: int | None = None) -> float:
        n = min(self.order, len(history) + 1) if n is None else n
        if n == 0:
            return 1 / self.vocab_size
        context = history[len(history) - n + 1 :]
        followers = {gram[-1]: c for gram, c in self.counts[n].items() if gram[:-1] == context}
        if not followers:
            return self.p(token, history, n - 1)
        total, discount = sum(followers.values()), self.discounts[n]
        taken = {w: discount[min(c, 3) - 1] for w, c in followers.items()}  # type: ignore[index]
        own = max(followers.get(token, 0) - taken.get(token, 0.0), 0.0)
        return own / total + sum(taken.values()) / total * self.p(token, history, n - 1)


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    """A sequence with structure: tokens follow one another by rule more often than not. Token 11 never occurs."""
    rng = np.random.default_rng(0)
    tokens = [0]
    for _ in range(1500):
        tokens.append(int((tokens[-1] * 3 + 1) % 11) if rng.random() < 0.7 else int(rng.integers(0, 11)))
    return np.array(tokens)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_textbook(text: np.ndarray, order: int) -> None:
    train, held_out = text[:1000], np.concatenate([text[1000:1100], [11, 11, 3, 4]])
    plain = Textbook(train.tolist(), order, vocab_size=12)
    expected = [-math.log(plain.p(int(held_out[i]), tuple(held_out[:i].tolist()))) for i in range(1, len(held_out))]
    np.testing.assert_allclose(KneserNey(train, order, vocab_size=12).nats(held_out), expected, rtol=1e-10)


def test_a_text_too_small_for_three_discounts_equals_the_textbook() -> None:
    train, held_out = np.array([1, 2, 1, 2, 3]), np.array([1, 2, 3, 0, 1])
    plain = Textbook(train.tolist(), 3, vocab_size=4)
    expected = [-math.log(plain.p(int(held_out[i]), tuple(held_out[:i].tolist()))) for i in range(1, 5)]
    np.testing.assert_allclose(KneserNey(train, 3, vocab_size=4).nats(held_out), expected, rtol=1e-10)


def test_no_token_has_probability_0_where_the_estimated_discount_would_be_0() -> None:
    """Twenty pairs come three times, one twice, one four times: by the formula a count of two is not discounted."""
    times = [3] * 20 + [2, 4]
    separator, train = 100, []
    for pair, count in enumerate(times):
        for _ in range(count):
            train += [2 * pair, 2 * pair + 1, separator]
            separator += 1
    twice = 2 * times.index(2)
    nats = KneserNey(np.array(train), 2, vocab_size=200).nats(np.array([twice, twice + 1, twice, 7]))
    assert np.isfinite(nats).all()
    plain = Textbook(train, 2, vocab_size=200)
    assert plain.discounts[2][1] == baselines._LEAST_DISCOUNT
    assert nats[-1] == pytest.approx(-math.log(plain.p(7, (twice,))))


@pytest.mark.parametrize("history", [[2], [2, 7], [5, 5, 5, 5], [11], [1, 11, 4], "seen"])
def test_probabilities_of_all_tokens_sum_to_one(text: np.ndarray, history: list[int] | str) -> None:
    model = KneserNey(text, 5, vocab_size=12)
    before = text[100:104].tolist() if history == "seen" else list(history)
    assert sum(math.exp(-model.nats(np.array([*before, token]))[-1]) for token in range(12)) == pytest.approx(1)


def test_longer_histories_help_on_text_with_structure(text: np.ndarray) -> None:
    means = [KneserNey(text[:1000], order, 12).nats(text[1000:]).mean() for order in (1, 2)]
    assert means[1] < means[0] - 0.5


def test_an_order_longer_than_the_text_is_cut() -> None:
    assert np.isfinite(KneserNey(np.array([1, 2]), 5, vocab_size=3).nats(np.array([1, 2, 0]))).all()
    with pytest.raises(ValueError, match="no tokens"):
        KneserNey(np.array([], np.int64), 5, vocab_size=3)


def test_a_large_vocabulary_does_not_overflow() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 150_000, 3000)
    doubled = np.concatenate([tokens, tokens])
    nats = KneserNey(doubled, 5, vocab_size=150_000).nats(tokens)
    assert nats[5:].mean() < 1.0  # every 5-gram was seen twice, and only it


def test_unigrams_are_frequencies_with_one_added() -> None:
    nats = unigram_nats(np.array([0, 0, 1]), np.array([9, 0, 1, 2]), vocab_size=3)
    np.testing.assert_allclose(np.exp(-nats), [3 / 6, 2 / 6, 1 / 6])


def test_compressors_count_bits_over_bytes_of_text() -> None:
    texts = [f"Der Bär Nummer {i} ißt {i * 7} Äpfel. " * 3 for i in range(40)]
    n_bytes = sum(len(text.encode()) for text in texts)
    data = "".join(text + "\0" for text in texts).encode()
    found = compressors(texts, [])
    assert set(found) == {"gzip", "xz", "zstd"}
    assert found["gzip"] == 8 * len(gzip.compress(data, 9)) / n_bytes
    assert found["zstd"] <= 8 * len(zstandard.compress(data, 19)) / n_bytes + 0.02


def test_training_text_helps_the_compressor_that_has_it() -> None:
    rng = np.random.default_rng(4)
    texts = ["".join(map(chr, rng.integers(97, 123, 400))) for _ in range(20)]
    found = compressors(texts[:5], texts)
    assert found["zstd_with_training_text"] < 0.2 < 4.0 < found["zstd"]


def test_what_is_compressed_comes_back() -> None:
    """The dictionary that stands for the training text is one that a decoder could have."""
    known, data = b"once upon a time " * 50, b"upon a time once"
    prefix = zstandard.ZstdCompressionDict(known, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    packed = zstandard.ZstdCompressor(dict_data=prefix, compression_params=baselines._zstd(12, 900)).compress(data)
    unpack = zstandard.ZstdDecompressor(dict_data=prefix, format=zstandard.FORMAT_ZSTD1)
    assert unpack.decompress(packed, max_output_size=100) == data
