"""What each training step reads: a function of the seed and the step alone, whatever the workers and ranks.

    for tokens_BS in batches(store, train, seed, first_step=0, rank=0, world_size=1): ...

Step k takes samples [k*G, (k+1)*G) of an endless stream of shuffled epochs.
Dimensions: B micro batch, S = T + 1 tokens of a sample, G global batch.
"""

import signal
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from pipeline.params import Train
from pipeline.train.samples import Samples


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
        samples,  # type: ignore[arg-type]  # a map-style dataset by what it has
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
