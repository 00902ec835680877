"""Texts from a model: many prompts at once, or one as a stream.

    generator = Generator.open(Path("models/litgpt"))      # pipeline/cli/terminal.py opens other folders
    for completion in generator.generate(["Once upon a time", "The dog"], Sampling(temperature=0)): ...
    for piece in generator.stream("Once upon a time", Sampling(seed=1)): print(piece, end="")

A prompt's text is the same alone and in any batch: it depends on the model, the prompt and the settings.

Legend: B rows (prompts), V vocabulary.
"""

import json
from collections.abc import Generator as Pieces
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pipeline.errors import UserError
from pipeline.generate.decoding import Decoder
from pipeline.generate.sampling import Sampling, draw, exact, is_text, shaped, uniforms
from pipeline.model import checkpoint_folder
from pipeline.model.build import MoEGPT
from pipeline.tokens import tokenizer as vocabulary
from pipeline.tokens.tokenizer import special_ids

_ROWS = 32  # prompts in one batch
_CONTEXT = 6  # tokens before a new one that may change how it is spelt (a space, a character's first bytes)


@dataclass(frozen=True)
class Completion:
    prompt: str
    text: str  # what follows the prompt
    n_tokens: int  # generated, an EOS token included
    finish_reason: Literal["end", "stop", "length"]  # the EOS token, a stop string, max_new_tokens or a full context


@dataclass
class _Row:
    """A prompt on its way."""

    prompt: str
    ids: list[int]
    room: int  # tokens that may still come
    spelling: "_Spelling"
    pieces: list[str] = field(default_factory=list)
    n_tokens: int = 0
    finish_reason: Literal["end", "stop", "length"] | None = None

    def add(self, token: int, eos_ids: frozenset[int]) -> None:
        """Take the next token: one more piece of text, perhaps empty, and the reason to finish if there is one."""
        self.n_tokens += 1
        self.room -= 1
        ended = token in eos_ids
        piece = "" if ended else self.spelling.add(token)
        if (ended or not self.room) and not self.spelling.stopped:
            piece += self.spelling.rest()
        self.pieces.append(piece)
        if self.spelling.stopped:
            self.finish_reason = "stop"
        elif ended:
            self.finish_reason = "end"
        elif not self.room:
            self.finish_reason = "length"

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        return Completion(self.prompt, "".join(self.pieces), self.n_tokens, self.finish_reason)


class Generator:
    """A model and its tokenizer, ready to continue texts."""

    def __init__(self, model: MoEGPT, tokenizer_folder: Path) -> None:
        """Raises UserError for a tokenizer that is missing, or has more tokens than the model."""
        self.model = model.eval()
        self.context = model.config.block_size
        self.tokenizer_folder = tokenizer_folder
        self.tokenizer = vocabulary.load(tokenizer_folder)
        self.eos_ids = _eos_ids(tokenizer_folder)
        ids = sorted(self.tokenizer.get_vocab(with_added_tokens=True).values())
        if ids[-1] >= (rows := model.config.padded_vocab_size):
            raise UserError(
                f"{tokenizer_folder}: the tokenizer has {ids[-1] + 1} tokens, the model {rows}; "
                "take the tokenizer that the model was trained with"
            )
        self._n_vocab = ids[-1] + 1  # rows after it are padding
        holes = sorted(set(range(self._n_vocab)) - set(ids))  # a pretrained vocabulary may have some
        self._holes = torch.tensor(holes, device=model.lm_head.weight.device) if holes else None

    @classmethod
    def open(cls, folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Self:
        """The model of a litgpt checkpoint folder; `dtype` of the weights: as stored if None. Raises UserError."""
        return cls(checkpoint_folder.load(Path(folder), device, dtype), Path(folder))

    def generate(self, prompts: list[str], sampling: Sampling) -> list[Completion]:
        """Continue every prompt; raises UserError for one that is empty, too long, or cannot be written in tokens."""
        return self._completed([self._row(prompt, self.encode(prompt), sampling) for prompt in prompts], sampling)

    def generate_ids(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        """As `generate`, from tokens."""
        return self._completed([self._row("", ids, sampling) for ids in prompts], sampling)

    def _completed(self, rows: list[_Row], sampling: Sampling) -> list[Completion]:
        for begin in range(0, len(rows), _ROWS):
            for _ in self._advance(rows[begin : begin + _ROWS], sampling):
                pass
        return [row.completion() for row in rows]

    def stream(self, prompt: str, sampling: Sampling) -> Pieces[str, None, Completion]:
        """Continue one prompt piece by piece, in whole characters; the generator's return value is the Completion."""
        return self.stream_ids(self.encode(prompt), sampling, prompt)

    def stream_ids(self, ids: list[int], sampling: Sampling, prompt: str = "") -> Pieces[str, None, Completion]:
        """As `stream`, from tokens."""
        return self._pieces(self._row(prompt, ids, sampling), sampling)  # what is wrong is raised here, not at `next`

    def _pieces(self, row: _Row, sampling: Sampling) -> Pieces[str, None, Completion]:
        for _ in self._advance([row], sampling):
            if row.pieces[-1]:
                yield row.pieces[-1]
        return row.completion()

    def check(self, prompt: str) -> None:
        """Raise UserError for a prompt that is empty, too long, or cannot be written in tokens."""
        self._room(prompt, self.encode(prompt))

    def continues(self, prompt: str) -> bool:
        """Whether `check` accepts the prompt."""
        try:
            self.check(prompt)
        except UserError:
            return False
        return True

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, special tokens in it spelt out; UserError where a character has none."""
        if not is_text(text):
            raise UserError(f"the prompt {_shown(text)} is not UTF-8; give it in that encoding")
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        unknown = self.tokenizer.token_to_id(getattr(self.tokenizer.model, "unk_token", None) or "")
        written: set[int] = set()
        for token, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token != unknown:
                written.update(range(begin, end))
        lost = sorted({letter for i, letter in enumerate(text) if i not in written and not letter.isspace()})
        if lost:
            raise UserError(f"the prompt {_shown(text)} has characters that the tokenizer has no token for: {lost}")
        return encoding.ids

    def _row(self, prompt: str, ids: list[int], sampling: Sampling) -> _Row:
        room = min(self._room(prompt, ids), sampling.max_new_tokens)
        return _Row(prompt, ids, room, _Spelling(self.tokenizer, ids[-_CONTEXT:], sampling.stop))

    def _room(self, prompt: str, ids: list[int]) -> int:
        """Tokens that the context has left, at least one."""
        if not ids:
            raise UserError("the prompt is empty; give the beginning of a text, a word is enough")
        room = self.context - len(ids)
        if room < 1:
            raise UserError(
                f"the prompt {_shown(prompt)} has {len(ids):,} tokens; the model's context is {self.context:,}, "
                f"so at most {self.context - 1:,} leave room for one more"
            )
        return room

    def _advance(self, rows: list[_Row], sampling: Sampling) -> Iterator[None]:
        """Give every row a token at a time until all are finished; rows that are leave the batch."""
        device = self.model.lm_head.weight.device
        room = max(row.room for row in rows)
        decoder = Decoder(self.model)
        logits_BV = decoder.begin([row.ids for row in rows], room - 1)
        seen_BV = self._seen([row.ids for row in rows]) if sampling.repetition_penalty != 1 else None
        uniform_BN = torch.stack([uniforms(sampling, row.prompt, room) for row in rows]).to(exact(device))
        for n in range(room):
            token_B = self._choose(logits_BV, seen_BV, uniform_BN[:, n], sampling)
            for row, token in zip(rows, token_B.tolist(), strict=True):
                row.add(token, self.eos_ids)
            yield
            alive = [i for i, row in enumerate(rows) if row.finish_reason is None]
            if not alive:
                return
            if len(alive) < len(rows):
                rows = [rows[i] for i in alive]
                token_B, uniform_BN = token_B[alive], uniform_BN[alive]
                seen_BV = None if seen_BV is None else seen_BV[alive]
                decoder.keep(alive)
            if seen_BV is not None:
                seen_BV.scatter_(1, token_B[:, None], True)
            logits_BV = decoder.step(token_B)

    @torch.inference_mode()
    def _choose(self, logits_BV: Tensor, seen_BV: Tensor | None, uniform_B: Tensor, sampling: Sampling) -> Tensor:
        logits_BV = logits_BV[:, : self._n_vocab].float()
        if self._holes is not None:
            logits_BV = logits_BV.index_fill(1, self._holes, -torch.inf)
        return draw(shaped(logits_BV, seen_BV, sampling), sampling, uniform_B)

    def _seen(self, ids: list[list[int]]) -> Tensor:
        seen_BV = torch.zeros(len(ids), self._n_vocab, dtype=torch.bool)
        for seen_V, row in zip(seen_BV, ids, strict=True):
            seen_V[row] = True
        return seen_BV.to(self.model.lm_head.weight.device)


class _Spelling:
    """Tokens into text as they come: only whole characters, and nothing that may turn out to be a stop string."""

    def __init__(self, tokenizer: Tokenizer, before: list[int], stop: tuple[str, ...]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._ids, self._released = list(before), len(before)
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now."""
        self._ids.append(token)
        text = self._text()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):  # perhaps the first bytes of a character
            return ""
        self._ids, self._released = self._ids[self._released :], len(self._ids) - self._released
        return self._release(text)

    def rest(self) -> str:
        """What was held back, now that no more comes."""
        text, self._ids = self._release(self._text()) + self._held, []
        return text

    def _text(self) -> str:
        """What the tokens not released yet add to those before them."""
        before = self._tokenizer.decode(self._ids[: self._released])
        return self._tokenizer.decode(self._ids)[len(before) :]

    def _release(self, text: str) -> str:
        text, self._held = self._held + text, ""
        found = min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=None)
        if found is not None:
            self.stopped = True
            return text[:found]
        begun = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def _eos_ids(folder: Path) -> frozenset[int]:
    """The tokenizer's EOS token, and those that a generation_config.json beside it names; there may be none."""
    ids = {special_ids(folder)["eos_token_id"]}
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            ids |= set(named) if isinstance(named, list) else {named}
        except (ValueError, AttributeError, TypeError):
            raise UserError(f"{path} is no JSON object with token ids; export the model anew") from None
    return frozenset(i for i in ids if i is not None)


def _shown(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 40 else prompt[:39] + "…")
