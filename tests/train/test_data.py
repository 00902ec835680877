"""Which samples a step reads depends on the seed and the step alone, and an epoch holds each sample once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.params import Train
from pipeline.train.data import batches, positions, spread
from pipeline.train.samples import Samples, Shuffle
from tests.train.small import run, tiny


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5000), st.integers(0, 2**31), st.integers(0, 10))
def test_a_shuffle_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    shuffled = Shuffle(n, seed, epoch)[np.arange(n)]
    assert np.array_equal(np.sort(shuffled), np.arange(n))


def test_a_shuffle_of_billions_costs_nothing_and_repeats_nothing() -> None:
    n = 3_000_000_000
    places = Shuffle(n, 1, 0)[np.arange(n - 200_000, n)]
    assert len(np.unique(places)) == 200_000
    assert places.min() >= 0 and places.max() < n
    assert abs(places.mean() / n - 0.5) < 0.005  # four standard errors are 0.0026


def test_a_shuffle_leaves_no_order_behind() -> None:
    n = 100_000
    shuffled = Shuffle(n, 7, 0)[np.arange(n)].astype(float)
    assert abs(np.corrcoef(np.arange(n), shuffled)[0, 1]) < 0.015
    assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < 0.015
    assert np.mean(np.diff(shuffled) == 1) < 1e-3


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    index = np.arange(1000)
    orders = [Shuffle(1000, seed, epoch)[index] for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    for i, one in enumerate(orders):
        for other in orders[i + 1 :]:
            assert np.mean(one == other) < 0.02


def test_every_token_is_predicted_once_an_epoch(corpus: Path) -> None:
    samples = Samples(corpus / "tokens" / "train", 32, seed=3)
    tokens = samples._store.read(0, samples.count * 32 + 1)
    seen = samples.__getitems__(list(range(samples.count, 2 * samples.count)))  # the second epoch
    order = np.argsort(samples.index(list(range(samples.count, 2 * samples.count))))
    assert np.array_equal(seen[order][:, 1:].reshape(-1), tokens[1:])


def first(corpus: Path, train: Train, step: int, count: int, rank: int = 0, world: int = 1) -> list[torch.Tensor]:
    samples = Samples(corpus / "tokens" / "train", train.block_size, train.seed)
    loader = batches(samples, train, step, rank, world, pin=False)
    return [next(loader) for _ in range(count)]


def test_workers_change_nothing(corpus: Path) -> None:
    alone = first(corpus, tiny().train, 5, 6)
    assert all(map(torch.equal, alone, first(corpus, tiny(num_workers=2).train, 5, 6)))


def test_starting_at_a_step_gives_what_that_step_would_have_read(corpus: Path) -> None:
    train = tiny().train
    assert all(map(torch.equal, first(corpus, train, 0, 10)[6:], first(corpus, train, 3, 4)))


def test_ranks_share_a_step_out_among_them(corpus: Path) -> None:
    whole = torch.cat(first(corpus, tiny().train, 4, 2))
    shares = [torch.cat(first(corpus, tiny(devices=2).train, 4, 1, rank, 2)) for rank in range(2)]
    assert torch.equal(whole, torch.cat(shares))


def test_a_loader_does_not_shift_the_models_generator(corpus: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    first(corpus, tiny(num_workers=1).train, 0, 2)
    assert torch.equal(torch.rand(4), expected)


def test_steps_cover_the_stream_without_gap() -> None:
    train = tiny(global_batch_size=12, micro_batch_size=3, devices=2).train
    stream = [p for step in range(3) for rank in range(2) for micro in positions(train, step, rank, 2) for p in micro]
    assert stream == list(range(36))


@pytest.mark.parametrize(("count", "world"), [(10, 1), (10, 4), (3, 4), (10**6, 2)])
def test_a_look_at_val_gives_each_rank_equally_many(corpus: Path, count: int, world: int) -> None:
    samples = Samples(corpus / "tokens" / "val", 32, None)
    shares = [sum(len(batch) for batch in spread(samples, count, rank, world, 4)) for rank in range(world)]
    assert len(set(shares)) == 1
    assert max(1, min(count, samples.count) - world) <= sum(shares) <= max(world, min(count, samples.count))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokens/val/chunk-0-0.bin", "is damaged: its SHA-256"),
        ("tokenizer", r"chunk-0-0\.bin holds token \d+, but the"),
    ],
)
def test_a_damaged_chunk_and_a_token_beyond_the_vocabulary_end_training_before_it_begins(
    corpus: Path, tmp_path: Path, name: str, message: str
) -> None:
    data = shutil.copytree(corpus, tmp_path / "data")
    if name == "tokenizer":  # another one than that of the tokens, of fewer tokens
        words = tokenizers.Tokenizer(tokenizers.models.BPE({"<|endoftext|>": 0, "a": 1}, []))
        words.save(str(data / "tokenizer/tokenizer.json"))
    else:
        content = bytearray((data / name).read_bytes())
        content[-9] ^= 4
        (data / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        run(data, tmp_path, tiny())
    assert not (tmp_path / "runs").exists()
