"""Reading a token set: any slice of it, from any process; damage is named, a flipped byte too."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from litdata import TokensLoader
from litdata.streaming.writer import BinaryWriter

from pipeline.errors import UserError
from pipeline.tokens import store
from pipeline.tokens.store import DOCUMENTS, TokenStore
from tests.tokenize.tokenizing import STORIES, token_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/tokens/train: some ten chunks of 1,000 tokens."""
    place = tmp_path_factory.mktemp("small")
    token_set(place, STORIES, STORIES[:7])
    return place / "tokens/train"


def test_any_slice_is_read_across_chunks(folder: Path) -> None:
    store = TokenStore(folder)
    everything = store.read(0, store.n_tokens)
    assert everything.dtype == np.int64

    @settings(deadline=None, max_examples=100)
    @given(st.data())
    def slice_of(data: st.DataObject) -> None:
        start = data.draw(st.integers(0, store.n_tokens))
        stop = data.draw(st.integers(start, min(store.n_tokens, start + 2500)))
        assert np.array_equal(store.read(start, stop), everything[start:stop])

    slice_of()
    for start, stop in ((-1, 5), (5, 4), (0, store.n_tokens + 1)):
        with pytest.raises(IndexError):
            store.read(start, stop)


def test_a_store_goes_to_worker_processes(folder: Path) -> None:
    store = TokenStore(folder)
    expected = store.read(990, 1010)
    copy = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 10_000
    assert np.array_equal(copy.read(990, 1010), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint16, torch.int64])
def test_a_set_that_others_wrote_is_read_too(tmp_path: Path, dtype: torch.dtype) -> None:
    """As litgpt's TextFiles writes it: torch tokens, one item a document, several items a chunk."""
    documents = [torch.arange(n, n + 40 + n, dtype=torch.int64).to(dtype) for n in range(20)]
    writer = BinaryWriter(str(tmp_path), chunk_bytes=500, item_loader=TokensLoader())
    for i, document in enumerate(documents):
        writer[i] = document
    writer.done()
    writer.merge()
    store = TokenStore(tmp_path)
    assert len(store._starts) > 3
    assert np.array_equal(store.read(0, store.n_tokens), torch.cat([d.long() for d in documents]).numpy())


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_folder_without_tokens_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tokens \(no index.json\); run: dvc repro tokenize"):
        TokenStore(tmp_path)


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("at", [9, -1], ids=["header", "token"])
def test_a_flipped_byte_of_a_chunk_is_noticed_when_the_chunk_is_read_or_all_are_verified(
    folder: Path, tmp_path: Path, at: int
) -> None:
    shutil.copytree(folder, tmp_path / "train")
    _flip(tmp_path / "train/chunk-0-3.bin", at)
    store = TokenStore(tmp_path / "train")
    assert len(store.read(0, 3000)) == 3000  # other chunks are whole
    for use in (lambda: store.read(2990, 3010), store.verify):
        with pytest.raises(UserError, match=r"chunk-0-3\.bin is damaged: its SHA-256 is not the one in"):
            use()
    TokenStore(folder).verify()


def test_a_verified_store_does_not_verify_again_in_a_worker(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "train")
    store = TokenStore(tmp_path / "train")
    store.verify()
    _flip(tmp_path / "train/chunk-0-3.bin", -1)
    assert len(pickle.loads(pickle.dumps(store)).read(2990, 3010)) == 20


def test_a_token_beyond_the_vocabulary_is_noticed(folder: Path) -> None:
    highest = int(TokenStore(folder).read(0, 1000).max())
    TokenStore(folder, 400).verify()
    with pytest.raises(UserError, match=rf"chunk-0-0\.bin holds token {highest}, but the vocabulary has {highest} tok"):
        TokenStore(folder, highest).read(0, 1)


def _index(**changes: Any) -> Callable[[Path], object]:
    """An edit of index.json; `chunk_…` goes to its first chunk, `config_…` to its config."""

    def edit(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        for key, value in changes.items():
            where, _, name = key.partition("_")
            place = {"chunk": index["chunks"][0], "config": index["config"]}.get(where, index)
            place[name if place is not index else key] = value
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")

    return edit


def _offsets(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    """An edit of documents.i64 whose digest is right, as a program with a defect would write it."""

    def edit(folder: Path) -> None:
        change(np.fromfile(folder / DOCUMENTS, "<i8")).astype("<i8").tofile(folder / DOCUMENTS)
        _index(sha256={})(folder)

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "index.json").write_text("{}"),
            "is not the index of a token set .*chunks: Fiel",
        ),
        (lambda folder: (folder / "index.json").write_bytes(b"\xff\xfe{"), "is not the index of a token set"),
        (lambda folder: (folder / "index.json").write_text("[" * 100_000), "is not the index of a token set"),
        (_index(chunks=[]), "chunks: List should have at least 1 item"),
        (_index(chunks=None), "chunks: Input should be a valid array"),
        (_index(chunks=[7]), r"chunks\.0"),
        (_index(chunk_dim="many"), r"chunks\.0\.dim: Input should be a valid integer"),
        (_index(chunk_dim=-5), r"chunks\.0\.dim: Input should be greater than or equal to 1"),
        (_index(chunk_dim=None), r"chunks\.0\.dim"),
        (_index(chunk_dim=999), "bytes where index.json has"),
        (_index(chunk_filename="../train/chunk-0-0.bin"), r"chunks\.0\.filename: String should match"),
        (_index(chunk_filename="gone.bin"), r"gone\.bin: 0 bytes where"),
        (_index(config_compression="zstd"), r"config\.compression: Input should be None"),
        (_index(config_data_format=["no_header_numpy:9"]), "no integers"),
        (_index(config_data_format=["no_header_numpy:99"]), "is not the index of a token set"),
        (_index(config_data_format=["jpeg"]), "is not the index of a token set"),
        (_index(config_data_format=[]), r"config\.data_format"),
        (lambda folder: (folder / "chunk-0-1.bin").write_bytes(b""), "chunk-0-1.bin: 0 bytes where index.json has"),
        (lambda folder: (folder / "chunk-0-1.bin").unlink(), "chunk-0-1.bin: 0 bytes where index.json has"),
        (lambda folder: (folder / DOCUMENTS).unlink(), "documents.i64 is missing or damaged"),
        (lambda folder: (folder / DOCUMENTS).write_bytes(b""), "documents.i64 is missing or damaged"),
        (lambda folder: (folder / DOCUMENTS).write_bytes(b"123456789"), "documents.i64 is missing or damaged"),
        (lambda folder: _flip(folder / DOCUMENTS, 8), "documents.i64 is damaged: its SHA-256"),
        (_offsets(lambda starts: starts[::-1]), "documents.i64 is damaged: it does not ascend from 0 to"),
        (_offsets(lambda starts: starts + 1), "does not ascend from 0 to"),
        (_offsets(lambda starts: starts[:-1]), "does not ascend from 0 to"),
        (_offsets(lambda starts: np.insert(starts, 3, starts[2])), "does not ascend from 0 to"),
    ],
)
def test_a_damaged_token_set_is_named_with_what_to_do(
    folder: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    place = shutil.copytree(folder, tmp_path / "train")
    damage(place)
    with pytest.raises(UserError, match=message) as caught:
        TokenStore(place).documents()
    assert str(place) in str(caught.value)
    assert "run: dvc repro tokenize" in str(caught.value)


def test_types_of_tokens_are_those_of_litdata() -> None:
    from litdata.constants import _NUMPY_DTYPES_MAPPING, _TORCH_DTYPES_MAPPING

    theirs = {
        "no_header_numpy": {n: np.dtype(dtype) for n, dtype in _NUMPY_DTYPES_MAPPING.items() if n < 8},
        "no_header_tensor": {
            n: np.dtype(str(dtype).removeprefix("torch."))
            for n, dtype in _TORCH_DTYPES_MAPPING.items()
            if not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool
        },
    }
    ours = {kind: {n: np.dtype(name) for n, name in known.items()} for kind, known in store._DTYPES.items()}
    assert ours == theirs
