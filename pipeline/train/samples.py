"""Samples of a token store, and the order in which training takes them. Imports no torch: planning is quick.

    samples = Samples(Path("data/tokens/train"), block_size=256, seed=42)
    samples.__getitems__([0, 1])    # tokens of the first two of the stream

Sample i of a store is tokens[i*T : i*T+T+1], so that each token is predicted once an epoch (but for a tail shorter
than one sample).
Dimensions: B micro batch, T tokens that are predicted.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.tokens.store import TokenStore

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDS = 6


class Shuffle:
    """A pseudo-random permutation of range(n), computed index by index, in no memory.

    A seeded array of indices would be simpler, but takes 8 bytes a sample in each rank and reader: 24 GB of 3 billion.

    A Feistel network over the smallest even-bit domain that holds n, walked until it falls inside (Black and
    Rogaway 2002, "Ciphers with Arbitrary Finite Domains"); the round function is the mixer of splitmix64.
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        self.n = n
        half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
        self._bits, self._mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
        digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
        self._keys = np.frombuffer(digest * 2, dtype="<u8")[:_ROUNDS].copy()
        self._keys += np.arange(_ROUNDS, dtype=np.uint64)  # the digest holds four keys; let none come twice

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """Where each index (int64, in [0, n)) goes."""
        result = self._encrypt(index.astype(np.uint64))
        outside = result >= self.n
        while outside.any():  # the domain is less than four times n, so a few rounds suffice
            result[outside] = self._encrypt(result[outside])
            outside = result >= self.n
        return result.astype(np.int64)

    def _encrypt(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._bits, x & self._mask
        with np.errstate(over="ignore"):
            for key in self._keys:
                left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._bits) | right


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Samples:
    """Samples of a token store by their position in the endless stream, as a map-style dataset of torch.

    A worker process gets a copy of it.
    """

    def __init__(self, folder: Path, block_size: int, seed: int | None, vocab_size: int | None = None) -> None:
        self._folder, self._seed, self._shuffle = folder, seed, (-1, Shuffle(1, 0, 0))
        self._store = TokenStore(folder, vocab_size)
        self.flags = self._store.flags
        self.block_size = block_size
        self.count = max(0, (self._store.n_tokens - 1) // block_size)

    @property
    def tokens_per_document(self) -> float | None:
        """The mean; None where the token set does not say."""
        return self._store.n_tokens / self._store.n_documents if self._store.n_documents else None

    def verify(self) -> None:
        """Raise UserError where a token is beyond vocab_size, or a chunk is not what was written: reads all of it."""
        self._store.verify()

    def index(self, positions: list[int]) -> np.ndarray:
        """Which sample stands at each position of the stream; in file order where there is no seed."""
        stream = np.asarray(positions, dtype=np.int64)
        epochs, within = np.divmod(stream, self.count)
        if self._seed is None:
            return within
        result = np.empty_like(within)
        for epoch in np.unique(epochs):
            if self._shuffle[0] != epoch:
                self._shuffle = (int(epoch), Shuffle(self.count, self._seed, int(epoch)))
            here = epochs == epoch
            result[here] = self._shuffle[1][within[here]]
        return result

    def __getitems__(self, positions: list[int]) -> "Tensor":
        """Tokens of the samples at these positions: int64 [B, T+1]."""
        import torch

        starts = self.index(positions) * self.block_size
        return torch.from_numpy(np.stack([self._store.read(int(s), int(s) + self.block_size + 1) for s in starts]))
