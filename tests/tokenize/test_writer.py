"""The token set: whole, the same files on every run, read alike by us, by litdata and by litgpt."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from litdata import StreamingDataset, TokensLoader
from typer.testing import CliRunner

from pipeline import console
from pipeline.errors import UserError
from pipeline.tokenize import texts
from pipeline.tokens.store import TokenStore
from pipeline.tokens.tokenizer import eos_id, load, vocab_size
from tests.tokenize.tokenizing import ROOT, STORIES, settings_for, shards, token_set

ODD = ["", " ", "A fox said <|endoftext|> and left.", "x" * 5000, "é😀\x00\n\n\n  tail  "]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    report = token_set(folder, [*STORIES, *ODD], STORIES[:7])
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def large_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than 2^16 tokens, and documents that use the highest of them."""
    folder = tmp_path_factory.mktemp("large")
    letters = "".join(map(chr, [*range(0x4E00, 0x9FFF), *range(0xAC00, 0xD7A4), *range(0x20000, 0x2A6D0)]))
    token_set(folder, [letters, letters[-500:]], [letters[:200]], "characters")
    return folder


# --- what is written --------------------------------------------------------------------------------------------------


def test_every_document_is_there_in_order_and_ends_with_the_eos_token(small: Path) -> None:
    encoder, end = load(small / "tokenizer"), eos_id(small / "tokenizer")
    store, offsets = TokenStore(small / "tokens/train"), TokenStore(small / "tokens/train").documents()
    everything = store.read(0, store.n_tokens)
    assert offsets[0] == 0
    assert offsets[-1] == store.n_tokens
    found = []
    for start, stop in itertools.pairwise(offsets.tolist()):
        *text, last = everything[start:stop]
        assert last == end
        assert end not in text
        found.append(encoder.decode(text))
    assert found == [*STORIES, *ODD]


def test_the_report_accounts_for_every_document_byte_and_token(small: Path) -> None:
    report = json.loads((small / "report.json").read_text(encoding="utf-8"))
    everything = [*STORIES, *ODD]
    train = report["train"]
    assert train["documents"] == len(everything)
    assert train["bytes"] == sum(len(text.encode()) for text in everything)
    assert train["characters"] == sum(map(len, everything))
    assert train["tokens"] == TokenStore(small / "tokens/train").n_tokens
    assert train["bytes_per_token"] == train["bytes"] / (train["tokens"] - train["documents"])
    ids = TokenStore(small / "tokens/train").read(0, train["tokens"])
    assert train["vocabulary_used"] == len(set(ids.tolist()))
    assert train["most_used"][0]["count"] == np.bincount(ids).max()
    assert train["least_used"][0]["count"] == 1
    assert report["dtype"] == "uint16"
    assert (small / "plots/tokens.png").read_bytes().startswith(b"\x89PNG")


def test_progress_says_how_long_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    token_set(tmp_path, STORIES, STORIES[:7])
    shown = capsys.readouterr().out
    for line in ("training the tokenizer: 400 of 400 documents (100%)", "tokenizing val: 7 of 7 documents (100%)"):
        assert line in shown and "left" in shown[shown.index(line) :].split("\n")[0]


def test_words_and_fallback_are_counted(tmp_path: Path) -> None:
    report = token_set(tmp_path, ["one  two\nthree"], ["new é \ttext"], "characters")
    assert report["train"]["words"] == 3
    assert report["train"]["fallback_share"] == 0
    assert report["val"]["words"] == 3
    fallen = sum(len(c.encode()) for c in "new é \ttext" if c not in "one  two\nthree")
    assert report["val"]["fallback_share"] == fallen / report["val"]["tokens"]


def test_an_unknown_token_is_counted(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"fox": 0, "<unk>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    path = str(tmp_path / "tokenizer.json")
    report = token_set(tmp_path, ["fox and fox", "and"], ["fox"], "pretrained", path=path)
    assert report["train"]["unknown_share"] == 2 / 6
    assert report["val"]["unknown_share"] == 0


def test_the_files_are_the_same_on_any_threads_and_from_any_cut_of_the_input(small: Path, tmp_path: Path) -> None:
    shards(tmp_path / "train", [*STORIES, *ODD], count=3, rows=7)
    shards(tmp_path / "val", STORIES[:7], rows=1)
    code = (
        "import sys; from pathlib import Path; from pipeline import params\n"
        "from pipeline.tokenize import writer as tokens\n"
        "asked = params.Tokenizer.model_validate_json(sys.argv[1])\n"
        "tokens._BATCH_CHARS = 3000\n"
        "tokens.write(asked, *map(Path, sys.argv[2:]))"
    )
    where = [str(small / "tokenizer"), str(tmp_path), str(tmp_path / "tokens")]
    environment = {**os.environ, "RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "7"}
    asked = settings_for("train", chunk_tokens=1000).model_dump_json()
    subprocess.run([sys.executable, "-c", code, asked, *where], check=True, cwd=ROOT, env=environment)
    assert digests(tmp_path / "tokens") == digests(small / "tokens")


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_chunk_holds_as_many_tokens_as_the_params_say(small: Path) -> None:
    index = json.loads((small / "tokens/train/index.json").read_text(encoding="utf-8"))
    sizes = [chunk["dim"] for chunk in index["chunks"]]
    assert len(sizes) > 5
    assert set(sizes[:-1]) == {1000}
    assert 0 < sizes[-1] <= 1000


def test_another_text_changes_what_names_the_cache_of_a_remote_set(small: Path, tmp_path: Path) -> None:
    token_set(tmp_path, [*STORIES, "One more."], STORIES[:7])

    def stamp(folder: Path, split: str) -> str:
        return str(json.loads((folder / "tokens" / split / "index.json").read_text(encoding="utf-8"))["updated_at"])

    assert stamp(tmp_path, "train") != stamp(small, "train")


def test_a_long_document_cut_in_pieces_gives_the_tokens_of_the_whole(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "PIECE_CHARS", 200)
    encoder = load(small / "tokenizer")
    long = "".join(STORIES[:100]) + "\n\n \n\tindented\n" * 50
    pieces = [piece for piece, _ in texts.pieces(long)]
    assert len(pieces) > 30
    assert [token_id for piece in pieces for token_id in encoder.encode(piece).ids] == encoder.encode(long).ids


def test_pieces_are_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "PIECE_CHARS", 5)

    @settings(deadline=None, max_examples=200)
    @given(st.text(alphabet="ab \n\t", max_size=60))
    def joined(document: str) -> None:
        pieces = list(texts.pieces(document))
        assert "".join(piece for piece, _ in pieces) == document
        assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]
        assert all(len(piece) <= 5 for piece, _ in pieces)

    joined()


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["small", "large_vocabulary"])
def test_litdata_reads_the_tokens_that_were_written(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    store = TokenStore(folder / "tokens/train")
    assert store.dtype == (np.uint16 if which == "small" else np.int32)
    streamed = StreamingDataset(str(folder / "tokens/train"), item_loader=TokensLoader(block_size=50))
    blocks = [at for a, b in itertools.pairwise(store._starts) for at in range(a, b - 49, 50)]
    assert len(streamed) == len(blocks)
    for i, at in enumerate(blocks):
        assert np.array_equal(np.asarray(streamed[i]), store.read(at, at + 50))
    encoder, end = load(folder / "tokenizer"), eos_id(folder / "tokenizer")
    written = [text for batch in texts.batches(folder / "clean/train") for text in batch]
    ids = [token_id for text in written for token_id in [*encoder.encode(text).ids, end]]
    assert store.read(0, store.n_tokens).tolist() == ids


def test_litgpt_draws_batches_from_it(small: Path) -> None:
    from litgpt.data import LitData

    data = LitData(data_path=small / "tokens", split_names=("train", "val"), num_workers=0)
    data.connect(batch_size=2, max_seq_length=32)
    batch = next(iter(data.val_dataloader()))
    expected = TokenStore(small / "tokens/val").read(0, 66)
    assert np.array_equal(batch.long().numpy().reshape(-1), expected)


def test_litgpt_pretrains_two_steps_on_it(small: Path, tmp_path: Path) -> None:
    asked = {
        "model_name": "tiny",
        "model_config": {"name": "tiny", "block_size": 32, "padded_vocab_size": 400}
        | {"n_layer": 1, "n_head": 2, "n_embd": 16},
        "out_dir": str(tmp_path / "out"),
        "precision": "32-true",
        "tokenizer_dir": str(small / "tokenizer"),
        "devices": 1,
        "data": {
            "class_path": "litgpt.data.LitData",
            "init_args": {"data_path": str(small / "tokens"), "split_names": ["train", "val"], "num_workers": 0},
        },
        "train": {"global_batch_size": 4, "micro_batch_size": 4, "max_tokens": 4 * 32 * 2, "max_seq_length": 32}
        | {"lr_warmup_steps": 0, "log_interval": 1, "save_interval": None, "tie_embeddings": False},
        "eval": {"interval": 1000, "max_iters": 1, "initial_validation": False},
        "logger_name": "csv",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [sys.executable, "-m", "litgpt", "pretrain", "--config", str(tmp_path / "config.yaml")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "iter 2 step 2" in ran.stdout, ran.stdout + ran.stderr
    assert (tmp_path / "out/final/lit_model.pth").is_file()


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_text_that_the_tokenizer_cannot_write_is_an_error_in_words(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"fox": 0, "a": 1}))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"the tokenizer cannot write the corpus .* bytes or an unknown token"):
        token_set(tmp_path, ["a fox", "dogs"], ["a fox"], "pretrained", path=str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (STORIES, [], "val holds no documents; give more documents, or raise clean.val_fraction"),
        ([], STORIES, "train holds no document"),
        (STORIES, None, "val holds no documents"),
    ],
)
def test_the_stage_refuses_an_empty_split_and_leaves_nothing_half_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    train: list[str],
    val: list[str] | None,
    message: str,
) -> None:
    from stages.tokenize import app

    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shards(tmp_path / "data/clean/train", train)
    if val is not None:
        shards(tmp_path / "data/clean/val", val)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["clean"]
    assert not (tmp_path / "reports").exists()


def test_the_stage_writes_tokenizer_tokens_report_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.tokenize import app

    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shards(tmp_path / "data/clean/train", STORIES)
    shards(tmp_path / "data/clean/val", STORIES[:9])
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "reports/tokenize.json").read_text(encoding="utf-8"))
    assert report["train"]["tokens"] == TokenStore(tmp_path / "data/tokens/train").n_tokens
    assert report["tokenizer"]["vocab_size"] == vocab_size(tmp_path / "data/tokenizer")
    assert (tmp_path / "reports/plots/tokenize/tokens.png").is_file()
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["clean", "tokenizer", "tokens"]
