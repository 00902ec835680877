"""The tokenizer: lossless, the same on every run, the same ids for whoever loads it; adopted ones as they were."""

import hashlib
import http.server
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
import tokenizers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from pipeline import params
from pipeline.corpus import tokenizer
from pipeline.errors import UserError

ROOT = Path(__file__).parents[2]
END = "<|endoftext|>"
ODD = [
    "Once upon a time, in 1984, there were 12,345 foxes.",
    "  leading, trailing  \n\n\n\ttabs\r\nand lines  ",
    "iPhone手机很好。カタカナとひらがな、漢字 한국어 텍스트",
    "café cafe\u0301 नमस्ते ไทย עברית 😀👩‍👩‍👧 \u200b\ufeff\x00\x1f",
    f"a marker {END} spelt out </s> <s> <0x41> ▁▁ Ġ",
    "x" * 700,
]
WORDS = [
    "the",
    "a",
    "little",
    "fox",
    "girl",
    "saw",
    "ran",
    "to",
    "forest",
    "and",
    "said",
    "hello",
    "happy",
    "dog",
    "tree",
]


def settings_for(kind: str, **changes: Any) -> params.Tokenizer:
    preset = yaml.safe_load((ROOT / "configs/tokenizer/bpe.yaml").read_text(encoding="utf-8"))
    return params.Tokenizer(**{**preset, "kind": kind, "vocab_size": 400 if kind == "train" else None, **changes})


def stories(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(5, 60))).capitalize() + "." for _ in range(count)]


def clean_set(folder: Path, train: list[str], val: list[str] | None = None) -> Path:
    for split, documents in (("train", train), ("val", val or ["A fox ran home."])):
        (folder / split).mkdir(parents=True)
        table = pa.table({"text": pa.array(documents, pa.string()), "source": ["test"] * len(documents)})
        pq.write_table(table, folder / split / "part-00000.parquet", row_group_size=50)
    return folder


@pytest.fixture(scope="module", params=["train", "bytes", "characters"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    clean = clean_set(folder / "clean", [*stories(200), *ODD[:2]])
    tokenizer.build(settings_for(request.param), clean, folder / "tokenizer")
    return request.param, folder / "tokenizer"


# --- what every kind promises -----------------------------------------------------------------------------------------


def test_decoding_gives_back_any_unicode(built: tuple[str, Path]) -> None:
    encoder = tokenizer.load(built[1])
    end = tokenizer.end_id(built[1])

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
    ours, theirs, lit = tokenizer.load(folder), AutoTokenizer.from_pretrained(folder), LitGPT(folder)
    end = tokenizer.end_id(folder)
    assert theirs.eos_token_id == lit.eos_id == end
    assert theirs.eos_token == END
    assert len(theirs) == tokenizer.vocab_size(folder)
    for text in ODD[:4]:
        ids = ours.encode(text).ids
        assert theirs(text)["input_ids"] == ids, kind
        assert lit.encode(text).tolist() == ids, kind
        assert theirs.decode(ids) == text
        assert lit.decode(lit.encode(text)) == text
    assert lit.encode("fox", eos=True).tolist() == [*ours.encode("fox").ids, end]


def test_a_prompt_may_hold_the_marker_for_transformers(built: tuple[str, Path]) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(built[1])
    assert theirs(END)["input_ids"] == [tokenizer.end_id(built[1])]


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_training_gives_the_same_bytes_on_any_threads_hash_seed_and_order(tmp_path: Path) -> None:
    documents = stories(300)
    digests = set()
    for run, (threads, order) in enumerate([("1", 1), ("4", -1)]):
        clean = clean_set(tmp_path / f"clean{run}", documents[::order])
        out = tmp_path / f"tokenizer{run}"
        code = (
            "import sys; from pathlib import Path; from pipeline import params; from pipeline.corpus import tokenizer\n"
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
    assert tokenizer.load(tmp_path / "t").encode("é\n~").ids == list("é\n~".encode())
    assert (report["vocab_size"], report["end_id"]) == (257, 256)


def test_characters_are_sorted_and_unseen_ones_fall_to_bytes(tmp_path: Path) -> None:
    report = tokenizer.build(
        settings_for("characters"), clean_set(tmp_path / "clean", ["abc", "cab d"]), tmp_path / "t"
    )
    encoder = tokenizer.load(tmp_path / "t")
    assert encoder.encode(" abcd").ids == [0, 1, 2, 3, 4]
    assert report["end_id"] == 5
    assert report["vocab_size"] == 5 + 1 + 256
    assert [encoder.id_to_token(i) for i in encoder.encode("aé").ids] == ["a", "<0xC3>", "<0xA9>"]


def test_a_vocabulary_larger_than_the_text_supports_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = clean_set(tmp_path / "clean", ["abab abab abab"])
    report = tokenizer.build(settings_for("train", vocab_size=5000), clean, tmp_path / "t")
    assert report["vocab_size"] == tokenizer.vocab_size(tmp_path / "t") < 300
    assert report["vocab_size_asked"] == 5000
    assert f"5,000 asked, {report['vocab_size']} made" in capsys.readouterr().err


def test_a_tokenizer_may_learn_from_a_share_of_the_text(tmp_path: Path) -> None:
    documents = stories(400)
    size = sum(map(len, documents))
    clean = clean_set(tmp_path / "clean", documents)
    report = tokenizer.build(settings_for("train", train_bytes=size // 2), clean, tmp_path / "t")
    assert 0.4 * size < report["trained_on"]["bytes"] < 0.6 * size


# --- adopted ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clean_set(tmp_path_factory.mktemp("clean"), stories(60))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, clean: Path) -> Path:
    """Somebody else's tokenizer: its own end marker, a mark of the beginning in its template, truncation."""
    folder = tmp_path_factory.mktemp("other")
    tokenizer.build(settings_for("train", end_token="<eos>", special_tokens=["<bos>"]), clean, folder)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.post_processor = tokenizers.processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    theirs.enable_truncation(5)
    theirs.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "LlamaTokenizer", "eos_token": {"content": "<eos>"}, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("given", ["folder", "file"])
@pytest.mark.parametrize(("asked", "end"), [(END, "<eos>"), ("<bos>", "<bos>")])
def test_an_adopted_tokenizer_keeps_ids_and_end_and_adds_nothing(
    other: Path, clean: Path, tmp_path: Path, given: str, asked: str, end: str
) -> None:
    from litgpt.tokenizer import Tokenizer as LitGPT
    from transformers import AutoTokenizer

    path = other if given == "folder" else other / "tokenizer.json"
    report = tokenizer.build(settings_for("adopt", path=str(path), end_token=asked), clean, tmp_path)
    assert report["end_token"] == end
    original = tokenizers.Tokenizer.from_file(str(other / "tokenizer.json"))
    original.no_truncation()
    for text in ODD[:4]:
        ids = original.encode(text, add_special_tokens=False).ids
        assert tokenizer.load(tmp_path).encode(text).ids == ids
        assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids
        assert LitGPT(tmp_path).encode(text).tolist() == ids


def test_an_adopted_tokenizer_without_an_end_marker_gets_one(other: Path, clean: Path, tmp_path: Path) -> None:
    shutil.copy(other / "tokenizer.json", tmp_path / "tokenizer.json")
    report = tokenizer.build(settings_for("adopt", path=str(tmp_path / "tokenizer.json")), clean, tmp_path / "out")
    size = tokenizer.vocab_size(other)
    assert (report["end_token"], report["end_id"], report["vocab_size"]) == (END, size, size + 1)


def test_an_end_marker_that_text_yields_is_refused(other: Path, clean: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer.end_token = 'a'"):
        tokenizer.build(settings_for("adopt", path=str(other), end_token="a"), clean, tmp_path)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "how",
    [
        {"byte_fallback": True},
        {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"byte_fallback": False, "add_dummy_prefix": False},
        {"byte_fallback": True, "split_by_whitespace": False},
    ],
    ids=["plain", "as_it_is", "no_prefix", "across_words"],
)
def test_an_adopted_sentencepiece_model_gives_its_own_ids(
    clean: Path, tmp_path: Path, model_type: str, how: dict[str, Any]
) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(stories(400)),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=400,
        model_type=model_type,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **how,
    )
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    report = tokenizer.build(settings_for("adopt", path=str(tmp_path)), clean, tmp_path / "out")
    assert (report["end_token"], report["end_id"]) == ("</s>", original.eos_id())
    assert report["vocab_size"] == original.vocab_size()
    encoder = tokenizer.load(tmp_path / "out")
    for text in [*stories(50, seed=1), *(ODD if how["byte_fallback"] else [])]:
        ids = original.encode(text)
        assert encoder.encode(text).ids == ids
        if original.unk_id() not in ids:  # which SentencePiece decodes to a sign of its own
            assert encoder.decode(ids) == original.decode(ids)


@pytest.fixture(scope="module")
def hub(other: Path) -> Iterator[str]:
    """A stand-in for the Hub: one repository, answered as huggingface.co answers."""
    commit = "0123456789abcdef0123456789abcdef01234567"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, with_body: bool) -> None:
            asked = re.fullmatch(r"/team/words/resolve/(\w+)/(.+)", self.path)
            file = other / asked[2] if asked else None
            problem = None
            if asked is None:
                problem = "RepoNotFound"
            elif asked[1] not in ("main", commit):
                problem = "RevisionNotFound"
            elif file is None or not file.is_file():
                problem = "EntryNotFound"
            body = b"" if problem or file is None else file.read_bytes()
            self.send_response(404 if problem else 200)
            if problem:
                self.send_header("X-Error-Code", problem)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_tokenizer_of_the_hub_is_fetched_at_its_revision(
    hub: str, other: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub_settings

    monkeypatch.setattr(hub_settings, "ENDPOINT", hub)
    monkeypatch.setattr(hub_settings, "HUGGINGFACE_CO_URL_TEMPLATE", hub + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hub_settings, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", False)

    report = tokenizer.build(settings_for("adopt", path="team/words", revision="main"), clean, tmp_path / "out")
    assert report["revision"] == "0123456789abcdef0123456789abcdef01234567"
    assert report["end_token"] == "<eos>"
    original = tokenizers.Tokenizer.from_file(str(other / "tokenizer.json"))
    original.no_truncation()
    assert tokenizer.load(tmp_path / "out").encode(ODD[0]).ids == original.encode(ODD[0], add_special_tokens=False).ids

    with pytest.raises(UserError, match=r"tokenizer.revision = 'nope': team/words has no such"):
        tokenizer.build(settings_for("adopt", path="team/words", revision="nope"), clean, tmp_path / "out")
    with pytest.raises(UserError, match="no such file, folder or Hub repository"):
        tokenizer.build(settings_for("adopt", path="team/nothing", revision="main"), clean, tmp_path / "out")


def test_without_a_network_the_hub_is_a_clear_error(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub_settings

    monkeypatch.setattr(hub_settings, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="Hugging Face Hub cannot be reached"):
        tokenizer.build(settings_for("adopt", path="openai-community/gpt2", revision="main"), clean, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", "is no tokenizer.json"),
        ("tokenizer.model", b"\xff\xffnot a model", "is no SentencePiece model"),
        ("vocab.txt", b"a b c", "holds no tokenizer; looked for"),
    ],
)
def test_a_folder_with_nothing_to_adopt_is_named(
    clean: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        tokenizer.build(settings_for("adopt", path=str(tmp_path)), clean, tmp_path / "out")
    assert str(tmp_path) in str(caught.value)


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
        list(tokenizer.texts(tmp_path / "train"))
    pq.write_table(pa.table({"body": ["x"]}), shard)
    with pytest.raises(UserError, match=r"part-00000\.parquet has no column text; it has: body"):
        list(tokenizer.texts(tmp_path / "train"))
    pq.write_table(pa.table({"text": ["x", None]}), shard)
    with pytest.raises(UserError, match=r"part-00000\.parquet has no text in row 1"):
        list(tokenizer.texts(tmp_path / "train"))


def test_a_folder_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer"):
        tokenizer.load(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer_config.json names no eos_token"):
        tokenizer.end_id(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "bytes", "vocab_size": 300}, "kind: bytes has its own, so allowed: null"),
        ({"kind": "train", "vocab_size": 200}, "is too small; 256 bytes and the markers need 257"),
        ({"kind": "train", "path": "gpt2"}, "means nothing with kind: train"),
        ({"kind": "adopt", "vocab_size": None}, "name the tokenizer to adopt"),
        ({"special_tokens": [END]}, "each once, not the end_token"),
        ({"chunk_tokens": 2**30}, "less than or equal to 1073741821"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_for(**{"kind": "train", **changes})
