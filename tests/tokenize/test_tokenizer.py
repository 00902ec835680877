"""The tokenizer: lossless, the same on every run, the same ids for whoever loads it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from pipeline.errors import UserError
from pipeline.tokenize import texts, tokenizer
from pipeline.tokens.tokenizer import eos_id, load, special_ids, vocab_size
from tests.tokenize.tokenizing import END, ODD, ROOT, clean_set, settings_for, stories


@pytest.fixture(scope="module", params=["train", "bytes", "characters"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    clean = clean_set(folder / "clean", [*stories(200), *ODD[:2]])
    tokenizer.build(settings_for(request.param), clean, folder / "tokenizer")
    return request.param, folder / "tokenizer"


# --- what every kind promises -----------------------------------------------------------------------------------------


def test_decoding_gives_back_any_unicode(built: tuple[str, Path]) -> None:
    encoder = load(built[1])
    end = eos_id(built[1])

    @settings(deadline=None, max_examples=150)
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
    def round_trip(text: str) -> None:
        ids = encoder.encode(text, add_special_tokens=False).ids
        assert encoder.decode(ids) == text
        assert end not in ids

    round_trip()
    for text in ODD:
        ids = encoder.encode(text).ids
        assert encoder.decode(ids) == text
        assert end not in ids


def test_transformers_and_litgpt_load_it_with_the_same_ids_and_end(built: tuple[str, Path]) -> None:
    from litgpt.tokenizer import Tokenizer as LitGPT
    from transformers import AutoTokenizer

    kind, folder = built
    ours, theirs, lit = load(folder), AutoTokenizer.from_pretrained(folder), LitGPT(folder)
    end = eos_id(folder)
    assert theirs.eos_token_id == lit.eos_id == end
    assert theirs.eos_token == END
    assert len(theirs) == vocab_size(folder)
    for text in ODD[:4]:
        ids = ours.encode(text).ids
        assert theirs(text)["input_ids"] == ids, kind
        assert lit.encode(text).tolist() == ids, kind
        assert theirs.decode(ids) == text
        assert lit.decode(lit.encode(text)) == text
    assert lit.encode("fox", eos=True).tolist() == [*ours.encode("fox").ids, end]


def test_transformers_obeys_a_special_token_in_a_text_unless_told_to_split_it(built: tuple[str, Path]) -> None:
    from transformers import AutoTokenizer

    ours, theirs = load(built[1]), AutoTokenizer.from_pretrained(built[1])
    assert theirs(END)["input_ids"] == [eos_id(built[1])]  # what chat templates and training programs rely on
    for text in (*ODD, END, "<|pad|>"):
        assert theirs(text, split_special_tokens=True)["input_ids"] == ours.encode(text).ids


def test_batches_are_padded_by_a_token_that_no_text_has_and_that_is_not_the_eos(built: tuple[str, Path]) -> None:
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    kind, folder = built
    theirs, pad = AutoTokenizer.from_pretrained(folder), special_ids(folder)["pad_token_id"]
    batch = theirs(["a b", "c"], padding=True)
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert batch["input_ids"][1] == [*load(folder).encode("c").ids, pad, pad]
    assert batch["attention_mask"] == [[1, 1, 1], [1, 0, 0]]
    assert load(folder).id_to_token(pad) == theirs.pad_token == "<|pad|>"
    assert pad not in load(folder).encode("\xff ÿ <0xFF> <|pad|>").ids
    assert load(folder).encode("\xff").ids or kind == "bytes"
    ended = [theirs("fox")["input_ids"] + [theirs.eos_token_id], theirs("a")["input_ids"]]
    learnt = DataCollatorForLanguageModeling(theirs, mlm=False)([{"input_ids": ids} for ids in ended])["labels"]
    assert theirs.eos_token_id in learnt[0].tolist()  # it would be masked if it were the pad token too
    assert pad not in learnt.flatten().tolist()


def test_the_pad_token_takes_no_room_in_the_vocabulary_and_leaves_ids_as_they_are(tmp_path: Path) -> None:
    clean = clean_set(tmp_path / "clean", [*stories(200), *ODD])
    for kind in ("train", "bytes", "characters"):
        padded = tokenizer.build(settings_for(kind), clean, tmp_path / kind)
        plain = tokenizer.build(settings_for(kind, pad_token=None), clean, tmp_path / f"{kind}-plain")
        assert (padded["vocab_size"], plain["pad_id"]) == (plain["vocab_size"], None)
        for text in ODD:
            assert load(tmp_path / kind).encode(text).ids == load(tmp_path / f"{kind}-plain").encode(text).ids


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_training_gives_the_same_bytes_on_any_threads_hash_seed_and_order(tmp_path: Path) -> None:
    documents = stories(300)
    digests = set()
    for run, (threads, order) in enumerate([("1", 1), ("4", -1)]):
        clean = clean_set(tmp_path / f"clean{run}", documents[::order])
        out = tmp_path / f"tokenizer{run}"
        code = (
            "import sys; from pathlib import Path; from pipeline import params\n"
            "from pipeline.tokenize import tokenizer\n"
            "asked = params.Tokenizer.model_validate_json(sys.argv[1])\n"
            "tokenizer.build(asked, Path(sys.argv[2]), Path(sys.argv[3]))"
        )
        asked = settings_for("train").model_dump_json()
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": str(run)}
        subprocess.run([sys.executable, "-c", code, asked, clean, out], check=True, cwd=ROOT, env=environment)
        digests.add(tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.iterdir())))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("split_digits", "text", "words"),
    [
        (True, "In 1984 it", ["In", " ", "1", "9", "8", "4", " it"]),
        (False, "In 1984 it", ["In", " ", "198", "4", " it"]),
        (True, "iPhone手机 is好", ["iPhone", "手机", " is", "好"]),
        (True, "they're 'so' odd", ["they", "'re", " '", "so", "'", " odd"]),
        (True, "a  b\n\n c", ["a", " ", " b", "\n\n", " c"]),
        (True, "नमस्ते cafe\u0301!", ["नमस्ते", " cafe\u0301", "!"]),
    ],
)
def test_words_that_merges_stay_within(split_digits: bool, text: str, words: list[str]) -> None:
    cut = pre_tokenizers.Split(tokenizers.Regex(tokenizer.pattern(split_digits)), "isolated")
    assert [word for word, _ in cut.pre_tokenize_str(text)] == words


def test_bytes_are_their_own_ids(tmp_path: Path) -> None:
    report = tokenizer.build(settings_for("bytes"), clean_set(tmp_path / "clean", stories(3)), tmp_path / "t")
    assert load(tmp_path / "t").encode("é\n~").ids == list("é\n~".encode())
    assert (report["vocab_size"], report["eos_id"]) == (257, 256)


def test_characters_are_sorted_and_unseen_ones_fall_to_bytes(tmp_path: Path) -> None:
    report = tokenizer.build(
        settings_for("characters"), clean_set(tmp_path / "clean", ["abc", "cab d"]), tmp_path / "t"
    )
    encoder = load(tmp_path / "t")
    assert encoder.encode(" abcd").ids == [0, 1, 2, 3, 4]
    assert report["eos_id"] == 5
    assert report["vocab_size"] == 5 + 1 + 256
    assert [encoder.id_to_token(i) for i in encoder.encode("aé").ids] == ["a", "<0xC3>", "<0xA9>"]


def test_a_vocabulary_larger_than_the_text_supports_is_as_large_as_it_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = clean_set(tmp_path / "clean", ["abab abab abab"])
    report = tokenizer.build(settings_for("train", vocab_size=5000), clean, tmp_path / "t")
    assert report["vocab_size"] == vocab_size(tmp_path / "t") < 300
    assert report["vocab_size_asked"] == 5000
    assert f"tokenize: a vocabulary of {report['vocab_size']}; " in (said := capsys.readouterr().out)
    assert "tokenizer.vocab_size allows 5,000" in said


def test_a_tokenizer_may_learn_from_a_share_of_the_text(tmp_path: Path) -> None:
    documents = stories(400)
    size = sum(map(len, documents))
    clean = clean_set(tmp_path / "clean", documents)
    report = tokenizer.build(settings_for("train", train_bytes=size // 2), clean, tmp_path / "t")
    assert 0.4 * size < report["trained_on"]["bytes"] < 0.6 * size


def test_a_tokenizer_that_loses_text_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lower = tokenizers.Tokenizer.from_file(str(_built(tmp_path / "given") / "tokenizer.json"))
    lower.normalizer = tokenizers.normalizers.Lowercase()
    lower.save(str(tmp_path / "given/tokenizer.json"))
    clean = clean_set(tmp_path / "clean", ["A fox.", "a dog", "a tree", "a girl"])
    report = tokenizer.build(settings_for("pretrained", path=str(tmp_path / "given")), clean, tmp_path / "t")
    assert (report["lossless"], report["round_trip"]) == (False, 0.75)
    said = " ".join(capsys.readouterr().err.split())
    assert "loses text: 1 of 4 documents decode to another text" in said
    assert "bits per byte do not compare" in said


def _built(folder: Path) -> Path:
    tokenizer.build(settings_for("train"), clean_set(folder / "clean", stories(50)), folder)
    return folder


# --- bad input --------------------------------------------------------------------------------------------------------


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no document to train a tokenizer on"):
        tokenizer.build(settings_for("train"), clean_set(tmp_path / "clean", []), tmp_path / "t")
    with pytest.raises(UserError, match=r"holds no documents \(\*.parquet\); run: dvc repro clean"):
        tokenizer.build(settings_for("train"), tmp_path / "nothing", tmp_path / "t")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shard = clean_set(tmp_path, stories(300)) / "train/part-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"part-00000\.parquet is damaged after row 0"):
        list(texts.batches(tmp_path / "train"))
    pq.write_table(pa.table({"body": ["x"]}), shard)
    with pytest.raises(UserError, match=r"part-00000\.parquet has no column text; it has: body"):
        list(texts.batches(tmp_path / "train"))
    pq.write_table(pa.table({"text": ["x", None]}), shard)
    with pytest.raises(UserError, match=r"part-00000\.parquet has no text in row 1"):
        list(texts.batches(tmp_path / "train"))


@pytest.mark.parametrize(("name", "kind"), [("eos_token", "characters"), ("pad_token", "bytes")])
def test_a_special_token_that_text_yields_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    with pytest.raises(UserError, match=rf"tokenizer\.{name} = 'a': text yields this token"):
        tokenizer.build(settings_for(kind, **{name: "a"}), clean_set(tmp_path / "clean", ["a fox"]), tmp_path / "t")


def test_a_folder_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer"):
        load(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer_config.json: eos_token is None"):
        eos_id(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "bytes", "vocab_size": 300}, "kind: bytes has its own, so allowed: null"),
        ({"kind": "train", "vocab_size": 200}, "is too small; 256 bytes and the special tokens need 257"),
        ({"kind": "train", "path": "gpt2"}, "means nothing with kind: train"),
        ({"kind": "pretrained", "vocab_size": None}, "name the pretrained tokenizer"),
        ({"special_tokens": [END]}, "each once, not the eos_token"),
        ({"pad_token": END}, "is the eos_token; .* a model would not learn to end"),
        ({"chunk_tokens": 2**30}, "less than or equal to 1073741821"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_for(**{"kind": "train", **changes})
