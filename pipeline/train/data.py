"""What each training step reads: a function of the seed and the step alone, whatever the workers and ranks.

    for tokens_BS in batches(store, train, seed, first_step=0, rank=0, world_size=1): ...

Sample i of a store is tokens[i*T : i*T+T+1], so that each token is predicted once an epoch (but for a tail shorter
than one sample). Step k takes samples [k*G, (k+1)*G) of an endless stream of shuffled epochs.
Dimensions: B micro batch, S = T + 1 tokens of a sample, G global batch.
"""

import hashlib
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.params import Train
from pipeline.tokens.store import TokenStore

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


class Samples(Dataset[Tensor]):
    """Samples of a token store by their position in the endless stream; a worker process gets a copy of it."""

    def __init__(self, folder: Path, block_size: int, seed: int | None, vocab_size: int | None = None) -> None:
        self._folder, self._seed, self._shuffle = folder, seed, (-1, Shuffle(1, 0, 0))
        self._store = TokenStore(folder, vocab_size)
        self.flags = self._store.flags
        self.block_size = block_size
        self.count = max(0, (self._store.n_tokens - 1) // block_size)

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

    def __getitems__(self, positions: list[int]) -> Tensor:
        """Tokens of the samples at these positions: int64 [B, T+1]."""
        starts = self.index(positions) * self.block_size
        return torch.from_numpy(np.stack([self._store.read(int(s), int(s) + self.block_size + 1) for s in starts]))


class _Steps(Sampler[list[int]]):
    """The positions of every micro batch from a step on, for one rank; endless."""

    def __init__(self, train: Train, first_step: int, rank: int, world_size: int) -> None:
        self._train, self._first_step, self._rank, self._world_size = train, first_step, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        step = self._first_step
        while True:
            yield from positions(self._train, step, self._rank, self._world_size)
            step += 1


def positions(train: Train, step: int, rank: int, world_size: int) -> list[list[int]]:
    """Stream positions of a step's micro batches on one rank."""
    share = train.global_batch_size // world_size
    first = step * train.global_batch_size + rank * share
    return [list(range(i, i + train.micro_batch)) for i in range(first, first + share, train.micro_batch)]


def batches(
    samples: Samples, train: Train, first_step: int, rank: int, world_size: int, pin: bool
) -> Generator[Tensor, None, None]:
    """Micro batches of `rank` from `first_step` on: int64 [B, T+1], endless. Closing it ends the workers."""
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=_Steps(train, first_step, rank, world_size),
        num_workers=train.num_workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # Samples.__getitems__ gives a batch as one tensor
        pin_memory=pin,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator().manual_seed(train.seed),  # its own: a loader draws a seed for its workers
    )
    yield from loader


def _as_it_is(batch_BS: Any) -> Any:
    return batch_BS


def _ignore_signals(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer decides when its readers stop."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


def spread(samples: Samples, count: int, rank: int, world_size: int, batch_size: int) -> Iterator[Tensor]:
    """Batches of about `count` samples spread evenly over an unshuffled store; every rank gets equally many."""
    count = max(1, min(count, samples.count) // world_size) * world_size
    chosen = [i * samples.count // count for i in range(count)][rank::world_size]
    for first in range(0, len(chosen), batch_size):
        yield samples.__getitems__(chosen[first : first + batch_size])
