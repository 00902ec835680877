"""Texts that join and leave a batch are the texts they would be alone; logprobs are those of the logits."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import params
from pipeline.generate.generation import Generator
from pipeline.generate.sampling import Sampling
from tests.generate.making import PROMPTS, made

MANY = [
    Sampling(temperature=0, max_new_tokens=25),
    Sampling(temperature=0, max_new_tokens=9, repetition_penalty=1.3),
    Sampling(temperature=0.9, seed=3, max_new_tokens=14),
    Sampling(temperature=0.9, seed=4, top_p=0.8, max_new_tokens=1),
    Sampling(temperature=0.9, seed=5, max_new_tokens=20, stop=("e",)),
]


@pytest.fixture(scope="module")
def generator(work: Path, parameters: params.Params, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return made(parameters, tmp_path_factory.mktemp("made") / "litgpt", work / "data/tokenizer")


@settings(max_examples=15, deadline=None)
@given(
    arrivals=st.lists(
        st.lists(st.tuples(st.sampled_from(PROMPTS), st.sampled_from(MANY)), max_size=3), min_size=1, max_size=6
    ),
    cancelled=st.integers(0, 5),
)
def test_texts_that_join_between_steps_are_those_they_would_be_alone(
    generator: Generator, arrivals: list[list[tuple[str, Sampling]]], cancelled: int
) -> None:
    batch, rows = generator.batch(), []
    for n, arriving in enumerate(arrivals):
        new = [generator.row(generator.encode(prompt), sampling, prompt) for prompt, sampling in arriving]
        if new:
            batch.add(new)
        rows += new
        if n == 2 and cancelled < len(rows):
            batch.drop([rows[cancelled]])
        if batch.rows:
            batch.step()
    while batch.rows:
        batch.step()
    for row in rows:
        alone = generator.generate([row.prompt], row.sampling)[0]
        if row.finish_reason is None:  # it left early: what it had is the beginning of its text
            assert row is rows[cancelled] and alone.text.startswith("".join(row.pieces))
        else:
            assert row.completion() == alone


def test_a_batch_that_was_empty_goes_on_and_its_cache_does_not_grow(generator: Generator) -> None:
    batch = generator.batch()
    long, short = Sampling(temperature=0, max_new_tokens=50), Sampling(temperature=0, max_new_tokens=3)
    generator.eos_ids = frozenset()
    for _ in range(3):  # someone is always there, so the batch never starts anew
        batch.add([generator.row(generator.encode("The"), long)])
        for _ in range(10):
            batch.add([generator.row(generator.encode("A cat"), short)])
            batch.step()
            batch.step()
            batch.step()
        assert batch._decoder._cache is not None
        assert batch._decoder._cache.key_LBGSD.size(3) <= generator.context
    while batch.rows:
        batch.step()


@torch.inference_mode()
def test_logprobs_are_those_of_the_model_whatever_the_temperature(generator: Generator) -> None:
    ids = generator.encode("Once upon a time")
    row = generator.row(ids, Sampling(temperature=1.7, top_k=5, seed=1, max_new_tokens=12), n_logprobs=3)
    other = generator.row(generator.encode("The"), Sampling(temperature=0, max_new_tokens=12))
    batch = generator.batch()
    batch.add([row, other])
    while batch.rows:
        batch.step()
    assert not other.choices and len(row.choices) == row.n_tokens - (row.finish_reason == "end")
    tokens = [choice.token for choice in row.choices]
    logits_TV = generator.model(torch.tensor([ids + tokens]))[0, len(ids) - 1 : -1, : generator.n_vocab]
    expected_TV = logits_TV.double().log_softmax(-1)
    for choice, expected_V in zip(row.choices, expected_TV, strict=True):
        assert choice.logprob == pytest.approx(float(expected_V[choice.token]), abs=1e-4)
        best = expected_V.topk(3)
        assert [token for token, _ in choice.alternatives] == best.indices.tolist()
        assert [value for _, value in choice.alternatives] == pytest.approx(best.values.tolist(), abs=1e-4)
