"""Pretrained tokenizers: their ids and EOS token stay; from folders, files, SentencePiece models and the Hub."""

import hashlib
import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from pipeline.errors import UserError
from pipeline.tokenize import texts, tokenizer
from pipeline.tokenize import writer as tokens
from pipeline.tokens.store import TokenStore
from pipeline.tokens.tokenizer import eos_id, load, vocab_size
from tests.tokenize.tokenizing import END, ODD, clean_set, settings_for, stories


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clean_set(tmp_path_factory.mktemp("clean"), stories(60))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, clean: Path) -> Path:
    """Somebody else's tokenizer: its own EOS token, a mark of the beginning in its template, truncation."""
    folder = tmp_path_factory.mktemp("other")
    tokenizer.build(settings_for("train", eos_token="<eos>", pad_token=None, special_tokens=["<bos>"]), clean, folder)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.post_processor = tokenizers.processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    theirs.enable_truncation(5)
    theirs.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "LlamaTokenizer", "eos_token": {"content": "<eos>"}, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("given", ["folder", "file"])
@pytest.mark.parametrize(("asked", "end"), [(END, "<eos>"), ("<bos>", "<bos>")])
def test_a_pretrained_tokenizer_keeps_ids_and_eos_and_adds_nothing(
    other: Path, clean: Path, tmp_path: Path, given: str, asked: str, end: str
) -> None:
    from litgpt.tokenizer import Tokenizer as LitGPT
    from transformers import AutoTokenizer

    path = other if given == "folder" else other / "tokenizer.json"
    report = tokenizer.build(settings_for("pretrained", path=str(path), eos_token=asked), clean, tmp_path)
    assert report["eos_token"] == end
    original = tokenizers.Tokenizer.from_file(str(other / "tokenizer.json"))
    original.no_truncation()
    for text in ODD[:4]:
        ids = original.encode(text, add_special_tokens=False).ids
        assert load(tmp_path).encode(text).ids == ids
        assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids
        assert LitGPT(tmp_path).encode(text).tolist() == ids


def test_what_changes_a_texts_tokens_is_taken_out_and_said(
    other: Path, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dropout left from training, truncation, padding, a template: the same ids on every run, and all of them."""
    theirs = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    original = tokenizers.Tokenizer.from_str(json.dumps(theirs | {"truncation": None}))
    theirs["model"]["dropout"] = 0.5
    theirs["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    theirs["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<eos>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(theirs), encoding="utf-8")
    for source in (load(tmp_path), None):  # read as it stands, e.g. by moe generate, and as the stage makes it
        if source is None:
            tokenizer.build(settings_for("pretrained", path=str(tmp_path)), clean, tmp_path / "out")
            source = tokenizers.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
            source.encode_special_tokens = True
        for text in [*ODD, "a"]:
            ids = original.encode(text, add_special_tokens=False).ids
            assert all(source.encode(text, add_special_tokens=False).ids == ids for _ in range(20))
    said = capsys.readouterr().out
    assert "taken out, so that a text always has the same tokens: BPE dropout, truncation, padding, the special" in said
    written = json.loads((tmp_path / "out/tokenizer.json").read_text(encoding="utf-8"))
    taken = (written["truncation"], written["padding"], written["post_processor"], written["model"]["dropout"])
    assert taken == (None, None, None, None)


@pytest.mark.parametrize(
    ("named", "pad"), [("<bos>", "<bos>"), ("<eos>", "<|pad|>"), ("<nowhere>", "<|pad|>"), (None, "<|pad|>")]
)
def test_a_pretrained_tokenizer_keeps_its_pad_token_unless_that_is_its_eos(
    other: Path, clean: Path, tmp_path: Path, named: str | None, pad: str
) -> None:
    theirs = shutil.copytree(other, tmp_path / "theirs")
    config = {"eos_token": "<eos>", "pad_token": named}
    (theirs / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    report = tokenizer.build(settings_for("pretrained", path=str(theirs)), clean, tmp_path / "out")
    assert (report["pad_token"], report["vocab_size"]) == (pad, vocab_size(other))


def test_a_pretrained_tokenizer_without_an_eos_token_gets_one(other: Path, clean: Path, tmp_path: Path) -> None:
    shutil.copy(other / "tokenizer.json", tmp_path / "tokenizer.json")
    report = tokenizer.build(settings_for("pretrained", path=str(tmp_path / "tokenizer.json")), clean, tmp_path / "out")
    size = vocab_size(other)
    assert (report["eos_token"], report["eos_id"], report["vocab_size"]) == (END, size, size + 1)


def test_an_eos_token_that_text_yields_is_refused(other: Path, clean: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer.eos_token = 'a'"):
        tokenizer.build(settings_for("pretrained", path=str(other), eos_token="a"), clean, tmp_path)


def train_sentencepiece(folder: Path, **how: Any) -> None:
    """folder/tokenizer.model, of 400 stories."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(stories(400)),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **how,
    )


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
def test_a_pretrained_sentencepiece_model_gives_its_own_ids(
    clean: Path, tmp_path: Path, model_type: str, how: dict[str, Any]
) -> None:
    train_sentencepiece(tmp_path, model_type=model_type, **how)
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    report = tokenizer.build(settings_for("pretrained", path=str(tmp_path)), clean, tmp_path / "out")
    assert (report["eos_token"], report["eos_id"]) == ("</s>", original.eos_id())
    # A unigram model, or one without bytes, has no token that no text needs: the pad token is a new one.
    grown = model_type == "unigram" or not how["byte_fallback"]
    assert (report["vocab_size"], report["lossless"]) == (original.vocab_size() + grown, report["round_trip"] == 1)
    encoder = load(tmp_path / "out")
    for text in [*stories(50, seed=1), *(ODD if how["byte_fallback"] else [])]:
        ids = original.encode(text)
        assert encoder.encode(text).ids == ids
        if original.unk_id() not in ids:  # which SentencePiece decodes to a sign of its own
            assert encoder.decode(ids) == original.decode(ids)


@pytest.mark.parametrize("field", ["precompiled_charsmap", "pieces"])
def test_a_sentencepiece_model_with_a_damaged_part_is_named(clean: Path, tmp_path: Path, field: str) -> None:
    train_sentencepiece(tmp_path, model_type="unigram")
    proto = vars(sentencepiece_model_pb2)["ModelProto"]()
    proto.ParseFromString((tmp_path / "tokenizer.model").read_bytes())
    if field == "pieces":
        proto.trainer_spec.unk_id = 10**6
    else:
        proto.normalizer_spec.precompiled_charsmap = b"\x09\x00"
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match=r"tokenizer\.model is a damaged SentencePiece model"):
        tokenizer.build(settings_for("pretrained", path=str(tmp_path)), clean, tmp_path / "out")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_a_long_document_gives_the_tokens_of_the_whole_though_a_text_begins_with_a_space_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, rule: str
) -> None:
    train_sentencepiece(
        tmp_path,
        model_type=model_type,
        normalization_rule_name=rule,
        remove_extra_whitespaces=rule != "identity",
        byte_fallback=True,
    )
    long = "\n".join(stories(40)) + "  \n \n" + "  ".join(stories(9, seed=2)) + " "
    clean = clean_set(tmp_path / "clean", ["A fox.", long, "A dog."])
    asked = settings_for("pretrained", path=str(tmp_path))
    tokenizer.build(asked, clean, tmp_path / "out")
    monkeypatch.setattr(texts, "PIECE_CHARS", 150)
    report = tokens.write(asked, tmp_path / "out", clean, tmp_path / "tokens")
    store = TokenStore(tmp_path / "tokens/train")
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    expected = [token for text in ("A fox.", long, "A dog.") for token in [*original.encode(text), original.eos_id()]]
    assert store.read(0, store.n_tokens).tolist() == expected
    assert report["train"]["documents"] == 3


def test_what_a_unigram_model_does_not_know_is_counted(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(stories(400)),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=100,
        model_type="unigram",
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    clean = clean_set(tmp_path / "clean", ["the fox 狐 ran", "a dog"], ["a fox"])
    asked = settings_for("pretrained", path=str(tmp_path))
    tokenizer.build(asked, clean, tmp_path / "out")
    report = tokens.write(asked, tmp_path / "out", clean, tmp_path / "tokens")
    assert report["train"]["unknown_share"] == 1 / report["train"]["tokens"]
    assert report["val"]["unknown_share"] == 0


@pytest.mark.parametrize(
    ("content", "message"), [(b'{"eos', "is no JSON"), (b"[1]", "holds no JSON object"), (b"[" * 99_999, "is no JSON")]
)
def test_a_damaged_configuration_beside_a_tokenizer_is_named(
    other: Path, clean: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    theirs = shutil.copytree(other, tmp_path / "theirs")
    (theirs / "tokenizer_config.json").write_bytes(content)
    for use in (
        eos_id,
        lambda path: tokenizer.build(settings_for("pretrained", path=str(path)), clean, tmp_path / "o"),
    ):
        with pytest.raises(UserError, match=rf"tokenizer_config.json {message}"):
            use(theirs)


@pytest.fixture(scope="module")
def hub(other: Path) -> Iterator[str]:
    """A stand-in for the Hub: one repository, answered as huggingface.co answers."""
    commit = "89abcdef0123456789abcdef0123456789abcdef"

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

    report = tokenizer.build(settings_for("pretrained", path="team/words", revision="main"), clean, tmp_path / "out")
    assert report["revision"] == "89abcdef0123456789abcdef0123456789abcdef"
    assert report["eos_token"] == "<eos>"
    original = tokenizers.Tokenizer.from_file(str(other / "tokenizer.json"))
    original.no_truncation()
    assert load(tmp_path / "out").encode(ODD[0]).ids == original.encode(ODD[0], add_special_tokens=False).ids

    with pytest.raises(UserError, match=r"'team/words' at revision 'nope': .* the repository has no such revision"):
        tokenizer.build(settings_for("pretrained", path="team/words", revision="nope"), clean, tmp_path / "out")
    with pytest.raises(UserError, match="no such file or folder; as a Hub repository: the Hub has no such repository"):
        tokenizer.build(settings_for("pretrained", path="team/nothing", revision="main"), clean, tmp_path / "out")


@pytest.mark.parametrize("name", ["a--b/c..d", "not a name", "one/two/three"])
def test_what_is_neither_a_file_nor_a_name_of_the_hub(clean: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        tokenizer.build(settings_for("pretrained", path=name), clean, tmp_path / "out")


@pytest.mark.parametrize(
    ("offline", "message"),
    [
        (True, "HF_HUB_OFFLINE is set, and the local cache does not have it; unset HF_HUB_OFFLINE, or name a local"),
        (False, "http://127.0.0.1:9 cannot be reached; check the network, or name a local folder"),
    ],
)
def test_without_a_network_one_sentence_says_what_to_do(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, message: str
) -> None:
    import huggingface_hub.constants as hub_settings

    nobody, path = "http://127.0.0.1:9", "{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_settings, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(hub_settings, "ENDPOINT", nobody)
    monkeypatch.setattr(hub_settings, "HUGGINGFACE_CO_URL_TEMPLATE", f"{nobody}/{path}")
    asked = settings_for("pretrained", path="openai-community/gpt2", revision="main")
    with pytest.raises(UserError, match=message) as caught:
        tokenizer.build(asked, clean, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", "is no tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "is no tokenizer"),
        ("tokenizer.json", b"[" * 9999, "is no tokenizer"),
        (
            "tokenizer.json",  # on which tokenizers panics
            b'{"normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAA"},"model":{"type":"BPE","vocab":{},"merges":[]}}',
            "is no tokenizer",
        ),
        (
            "tokenizer.json",
            b'{"model":{"type":"BPE","vocab":{"a":4000000000},"merges":[]}}',
            "has a token with the id 4,000,000,000",
        ),
        ("tokenizer.model", b"\xff\xffnot a model", "is no SentencePiece model"),
        ("vocab.txt", b"a b c", "holds no tokenizer; looked for"),
    ],
)
def test_a_folder_without_a_tokenizer_is_named(
    clean: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        tokenizer.build(settings_for("pretrained", path=str(tmp_path)), clean, tmp_path / "out")
    assert str(tmp_path) in str(caught.value)
