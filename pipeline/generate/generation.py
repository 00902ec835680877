"""Texts from a model: many prompts at once, or one as a stream.

    generator = Generator.open(Path("models/litgpt"))      # pipeline/cli/terminal.py opens other folders
    for completion in generator.generate(["Once upon a time", "The dog"], Sampling(temperature=0)): ...
    for piece in generator.stream("Once upon a time", Sampling(seed=1)): print(piece, end="")

A prompt's text is the same alone and in any batch: it depends on the model, the prompt and the settings.
"""

import json
from collections.abc import Generator as Pieces
from pathlib import Path
from typing import Self

import torch

from pipeline.errors import UserError
from pipeline.generate.batch import Batch, Completion, Row
from pipeline.generate.sampling import Sampling, is_text
from pipeline.model import checkpoint_folder
from pipeline.model.build import MoEGPT
from pipeline.tokens import tokenizer as vocabulary
from pipeline.tokens.tokenizer import special_ids

_ROWS = 32  # prompts in one batch


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
        self.n_vocab = ids[-1] + 1  # rows after it are padding
        holes = sorted(set(range(self.n_vocab)) - set(ids))  # a pretrained vocabulary may have some
        self._before = self.tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._holes_V = torch.tensor(holes, device=model.lm_head.weight.device) if holes else None

    @classmethod
    def open(cls, folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Self:
        """The model of a litgpt checkpoint folder; `dtype` of the weights: as stored if None. Raises UserError."""
        return cls(checkpoint_folder.load(Path(folder), device, dtype), Path(folder))

    def generate(self, prompts: list[str], sampling: Sampling) -> list[Completion]:
        """Continue every prompt; raises UserError for one that is empty, too long, or cannot be written in tokens."""
        return self._completed([self.row(self.encode(prompt), sampling, prompt) for prompt in prompts])

    def generate_ids(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        """As `generate`, from tokens."""
        return self._completed([self.row(ids, sampling) for ids in prompts])

    def _completed(self, rows: list[Row]) -> list[Completion]:
        for begin in range(0, len(rows), _ROWS):
            batch = self.batch()
            batch.add(rows[begin : begin + _ROWS])
            while batch.rows:
                batch.step()
        return [row.completion() for row in rows]

    def stream(self, prompt: str, sampling: Sampling) -> Pieces[str, None, Completion]:
        """Continue one prompt piece by piece, in whole characters; the generator's return value is the Completion."""
        return self.stream_ids(self.encode(prompt), sampling, prompt)

    def stream_ids(self, ids: list[int], sampling: Sampling, prompt: str = "") -> Pieces[str, None, Completion]:
        """As `stream`, from tokens."""
        return self._pieces(self.row(ids, sampling, prompt))  # what is wrong is raised here, not at `next`

    def _pieces(self, row: Row) -> Pieces[str, None, Completion]:
        batch = self.batch()
        batch.add([row])
        while batch.rows:
            batch.step()
            if row.pieces[-1]:
                yield row.pieces[-1]
        return row.completion()

    def batch(self) -> Batch:
        """An empty batch; `row` makes what can be added."""
        return Batch(self.model, self.n_vocab, self._holes_V, self.eos_ids)

    def row(self, ids: list[int], sampling: Sampling, prompt: str = "", n_logprobs: int | None = None) -> Row:
        """A prompt for a batch; raises UserError for one that is empty or too long. `n_logprobs`: see Row."""
        room = min(self._room(prompt, ids), sampling.max_new_tokens)
        return Row(prompt, ids, room, sampling, self.tokenizer, n_logprobs)

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

    def name(self, token: int) -> str:
        """A token's text after another one, a special token's name; of a part of a character a replacement sign."""
        before = self.tokenizer.decode(self._before)  # some tokenizers write no space at the beginning of a text
        return self.tokenizer.decode([*self._before, token], skip_special_tokens=False)[len(before) :]

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
