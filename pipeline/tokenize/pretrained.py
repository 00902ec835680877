"""Tokenizers that exist: a folder, a tokenizer.json, a SentencePiece model, or a repository of the Hugging Face Hub.

    tokenizer, eos_token, origin = load(params.tokenizer)

What it would add by itself (a mark of the beginning, padding, truncation) is taken out: documents are
written without it, so a model trained here never sees it.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pipeline import params
from pipeline.errors import UserError
from pipeline.tokens.tokenizer import special_token

_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")  # in order of preference
_NAMES = ("tokenizer_config.json", "special_tokens_map.json")  # where a folder names its special tokens
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-]+")


def load(params: params.Tokenizer) -> tuple[Tokenizer, str, dict[str, Any]]:
    """The tokenizer at `params.path`, its EOS token, and where it is from.

    The EOS token is `params.eos_token` if the vocabulary has it, else the tokenizer's own; if it has neither,
    `params.eos_token` is added as a new token. Raises UserError where nothing can be loaded, or where ordinary text
    yields the EOS token.
    """
    assert params.path is not None  # the params demand it for kind: pretrained
    place = Path(params.path).expanduser()
    origin: dict[str, Any] = {"pretrained": params.path}
    if not place.exists():
        place, origin["revision"] = _from_hub(params.path, params.revision)
    file = _vocabulary_file(place)
    own_end = _own_end(file.parent)
    if file.suffix == ".json":
        tokenizer = _from_json(file)
    else:
        tokenizer, piece = _from_sentencepiece(file)
        own_end = own_end or piece
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = None

    candidates = [name for name in (params.eos_token, own_end) if name and tokenizer.token_to_id(name) is not None]
    eos_token = candidates[0] if candidates else params.eos_token
    tokenizer.add_special_tokens([eos_token, *params.special_tokens])
    tokenizer.encode_special_tokens = True
    if tokenizer.token_to_id(eos_token) in tokenizer.encode(eos_token, add_special_tokens=False).ids:
        raise UserError(f"tokenizer.eos_token = {eos_token!r}: text yields it in {params.path}; name another token")
    return tokenizer, eos_token, origin


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


def _own_end(folder: Path) -> str | None:
    for name in _NAMES:
        try:
            token = special_token(json.loads((folder / name).read_text(encoding="utf-8")), "eos")
        except (OSError, ValueError, AttributeError):
            continue
        if token is not None:
            return token
    return None


def _from_json(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"tokenizer.path: {file} is no tokenizer.json ({error})") from None


# --- SentencePiece ----------------------------------------------------------------------------------------------------

_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # SentencePiece.Type


def _from_sentencepiece(file: Path) -> tuple[Tokenizer, str | None]:
    """Convert a SentencePiece model (Kudo & Richardson 2018); return it and its EOS token.

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
    tokenizer = Tokenizer(_unigram(proto) if kind == _UNIGRAM else _bpe(proto))
    _spaces(tokenizer, proto)
    tokenizer.add_special_tokens([piece.piece for piece in proto.pieces if piece.type == _CONTROL])
    tokenizer.add_tokens([piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED])
    end = proto.trainer_spec.eos_id
    return tokenizer, proto.pieces[end].piece if 0 <= end < len(proto.pieces) else None


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
