"""Tokenizers that exist: a folder, a tokenizer.json, a SentencePiece model, or a repository of the Hugging Face Hub.

    tokenizer, facts = load(params.tokenizer)

What would give a text other tokens each time, or tokens that it does not have, is taken out: BPE dropout, truncation,
padding, a template that adds special tokens. A model trained here never sees them.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pipeline import console, params
from pipeline.errors import UserError
from pipeline.tokens import tokenizer as reading
from pipeline.tokens.tokenizer import in_words, read_object, special_token

_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")  # in order of preference
_NAMES = ("tokenizer_config.json", "special_tokens_map.json")  # where a folder names its special tokens
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-]+")


def load(params: params.Tokenizer) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer at `params.path`; its EOS and pad token and where it is from, for the report.

    Each of the two is the one that `params` name if the vocabulary has it, else the tokenizer's own (a pad token that
    is the EOS or the unknown token is none), else that of `params`, for the caller to add. Raises UserError where
    nothing can be loaded.
    """
    assert params.path is not None  # the params demand it for kind: pretrained
    place = Path(params.path).expanduser()
    facts: dict[str, Any] = {"pretrained": params.path}
    if not place.exists():
        place, facts["revision"] = _from_hub(params.path, params.revision)
    file = _vocabulary_file(place)
    named = {kind: _named(file.parent, kind) for kind in ("eos", "pad")}
    if file.suffix == ".json":
        tokenizer, unknown = _from_json(file)
    else:
        tokenizer, own, unknown = _from_sentencepiece(file)
        named = own | {kind: text for kind, text in named.items() if text}

    def choose(asked: str | None, own: str | None) -> str | None:
        return next((name for name in (asked, own) if name and tokenizer.token_to_id(name) is not None), asked)

    facts["eos_token"] = choose(params.eos_token, named["eos"])
    own_pad = None if named["pad"] in (facts["eos_token"], unknown) else named["pad"]
    facts["pad_token"] = choose(params.pad_token, own_pad) if params.pad_token else None
    tokenizer.add_special_tokens([facts["eos_token"], *params.special_tokens])
    tokenizer.encode_special_tokens = True
    return tokenizer, facts


def _from_json(file: Path) -> tuple[Tokenizer, str | None]:
    """The tokenizer without what changes a text's tokens, and its unknown token; says what was taken out."""
    tokenizer, whole = reading.load(file), read_object(file)
    found = {
        "BPE dropout": whole["model"].get("dropout"),
        "truncation": whole.get("truncation"),
        "padding": whole.get("padding"),
        "the special tokens that its template adds": tokenizer.num_special_tokens_to_add(False),
    }
    if taken := [what for what, value in found.items() if value]:
        console.say(f"{file}: taken out, so that a text always has the same tokens: {', '.join(taken)}")
    tokenizer.post_processor = None
    return tokenizer, whole["model"].get("unk_token")


def _vocabulary_file(place: Path) -> Path:
    if place.is_file():
        return place
    found = next((place / name for name in _FILES if (place / name).is_file()), None) or next(
        iter(sorted(place.glob("*.model"))), None
    )
    if found is None:
        raise UserError(f"tokenizer.path: {place} holds no tokenizer; looked for: {', '.join(_FILES)}, *.model")
    return found


def _from_hub(repo: str, revision: str | None) -> tuple[Path, str]:
    """Fetch the tokenizer's files (and nothing else) of a Hub repository; return their folder and the commit."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from pipeline import hub

    where = f"tokenizer.path = {repo!r}" + (f" at revision {revision!r}" if revision else "")
    if not _HUB_ID.fullmatch(repo):
        raise UserError(f"{where}: no such file or folder, and no Hub repository (owner/name)")
    fetched: list[Path] = []
    with hub.in_words(f"{where}: no such file or folder; as a Hub repository", instead="name a local folder"):
        for name in (*_FILES, *_NAMES):
            if name in _FILES and fetched:
                continue
            try:
                fetched.append(Path(hf_hub_download(repo, name, revision=revision)))
            except LocalEntryNotFoundError:  # is an EntryNotFoundError too, and means that the Hub was not asked
                raise
            except EntryNotFoundError:
                continue
    if not fetched or fetched[0].name not in _FILES:
        raise UserError(f"{where}: the repository holds no tokenizer; looked for: {', '.join(_FILES)}")
    return fetched[0].parent, fetched[0].parent.name  # the cache names a snapshot's folder by its commit


def _named(folder: Path, kind: str) -> str | None:
    """The text of the EOS or pad token, as the files beside the vocabulary name it."""
    texts = (special_token(read_object(folder / name), kind) for name in _NAMES)
    return next((text for text in texts if text), None)


# --- SentencePiece ----------------------------------------------------------------------------------------------------

_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # SentencePiece.Type


def _from_sentencepiece(file: Path) -> tuple[Tokenizer, dict[str, str | None], str]:
    """Convert a SentencePiece model (Kudo & Richardson 2018); return it, its EOS and pad token, its unknown token.

    Ids stay as they are. The normalisation table, byte fallback and the space put before the text are kept.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = vars(sentencepiece_model_pb2)["ModelProto"]()
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError:
        raise UserError(f"tokenizer.path: {file} is no SentencePiece model") from None
    kind = proto.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE) or not proto.pieces:
        raise UserError(f"tokenizer.path: {file} is a SentencePiece model of type {kind}; allowed: unigram, bpe")
    with in_words(f"tokenizer.path: {file} is a damaged SentencePiece model"):
        tokenizer = Tokenizer(_unigram(proto) if kind == _UNIGRAM else _bpe(proto))
        _spaces(tokenizer, proto)
    tokenizer.add_special_tokens([piece.piece for piece in proto.pieces if piece.type == _CONTROL])
    tokenizer.add_tokens([piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED])
    own = {"eos": proto.trainer_spec.eos_id, "pad": proto.trainer_spec.pad_id}
    names = {kind: proto.pieces[i].piece if 0 <= i < len(proto.pieces) else None for kind, i in own.items()}
    return tokenizer, names, proto.trainer_spec.unk_piece


def _unigram(proto: Any) -> models.Unigram:
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    return models.Unigram(vocabulary, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)


def _bpe(proto: Any) -> models.BPE:
    """SentencePiece stores no merges: a pair may merge if the two together are a piece, best score first."""
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    plain = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    merges = [
        (whole[:cut], whole[cut:])
        for whole in sorted(plain, key=lambda piece: (-plain[piece], ids[piece]))
        for cut in range(1, len(whole))
        if whole[:cut] in plain and whole[cut:] in plain
    ]
    return models.BPE(
        ids,
        merges,
        unk_token=proto.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _spaces(tokenizer: Tokenizer, proto: Any) -> None:
    """SentencePiece's treatment of the text before and after: normalisation, and '▁' for a space."""
    spec = proto.normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])

    cuts = []
    if proto.trainer_spec.model_type == _UNIGRAM:  # tokenizers' looks up all pieces in a text, special ones too
        cuts.append(_apart(piece.piece for piece in proto.pieces if piece.type not in (_NORMAL, _USER_DEFINED)))
    if not any(re.search("[^▁]▁", piece.piece) for piece in proto.pieces if piece.type == _NORMAL):
        # No piece goes on past the end of a word, so words can be looked up one by one: the same ids, faster.
        cuts.append("▁+[^▁]*|[^▁]+")
    splits = [pre_tokenizers.Split(Regex(cut), "isolated") for cut in cuts]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else [])])


def _apart(special: Iterable[str]) -> str:
    """A pattern for the first character of a special token that is spelt out in a text: cut there, it is text."""
    rests: dict[str, list[str]] = {}
    for text in special:
        if len(text) > 1:
            rests.setdefault(text[0], []).append(re.escape(text[1:]))
    return "|".join(f"{re.escape(first)}(?=(?:{'|'.join(rest)}))" for first, rest in rests.items()) or r"(?!)"
