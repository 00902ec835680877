"""A model of bytes, and a token set of conversations for it: a shout, and the same in small letters as the answer."""

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.model import build, checkpoint_folder
from pipeline.tokenize.writer import Writer
from pipeline.tokens import tokenizer as vocabulary
from pipeline.tokens.flags import FIRST, LOSS
from tests.train.conftest import _one_thread as _one_thread
from tests.train.conftest import corpus as corpus
from tests.train.small import tiny

T = 32  # the model's context


@pytest.fixture(scope="session")
def children() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.train.loop"])
    return context


@pytest.fixture(scope="session")
def pretrained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A litgpt checkpoint folder of random weights."""
    folder = tmp_path_factory.mktemp("pretrained") / "litgpt"
    model = build.build(tiny().model, vocabulary.vocab_size(corpus / "tokenizer"), seed=3)
    checkpoint_folder.save(model, folder, corpus / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def instruct(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage instruct writes: data/instruct with train, val and tokenizer."""
    folder = tmp_path_factory.mktemp("data") / "instruct"
    for split, count in (("train", 60), ("val", 12)):
        write(folder / split, conversations(count, corpus / "tokenizer"), vocabulary.eos_id(corpus / "tokenizer"))
    shutil.copytree(corpus / "tokenizer", folder / "tokenizer")
    return folder


def conversations(count: int, tokenizer: Path) -> list[np.ndarray]:
    """Each: the ids of a question, not trained, and of its answer with the EOS token, trained; the first one marked."""
    encoder, eos = vocabulary.load(tokenizer), vocabulary.eos_id(tokenizer)
    drawn = np.random.default_rng(7)
    found = []
    for _ in range(count):
        word = "".join(chr(97 + drawn.integers(4)) for _ in range(drawn.integers(3, 8)))
        question, answer = (encoder.encode(text, add_special_tokens=False).ids for text in (f"{word.upper()}=", word))
        found.append(np.array([*question, *(token | LOSS for token in [*answer, eos])]))
        found[-1][0] |= FIRST
    return found


def write(folder: Path, chosen: list[np.ndarray], eos: int) -> None:
    """Blocks of T tokens: whole conversations and then EOS tokens; and one more EOS token at the end."""
    blocks: list[np.ndarray] = []
    block = np.empty(0, dtype=np.int64)
    for each in chosen:
        if len(block) + len(each) > T:
            blocks.append(np.pad(block, (0, T - len(block)), constant_values=eos | FIRST))
            block = np.empty(0, dtype=np.int64)
        block = np.concatenate([block, each])
    blocks += [np.pad(block, (0, T - len(block)), constant_values=eos | FIRST), np.array([eos | FIRST])]
    tokens = np.concatenate(blocks)
    folder.mkdir(parents=True)
    with Writer(folder, 10_000, np.dtype(np.int32), flags=True) as writer:
        writer.add(tokens, np.array([len(tokens)]))
