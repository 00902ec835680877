"""Texts on their way, a token of each at a time. Each has its own settings; new ones may join between steps.

    batch.add([row, other])
    while batch.rows:
        batch.step()                # row.pieces grows; a row that is done leaves
    row.completion()

Legend: B rows, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pipeline.generate.decoding import Decoder
from pipeline.generate.sampling import Sampling, draw, exact, shaped, uniforms
from pipeline.generate.spelling import Spelling
from pipeline.model.build import MoEGPT

Reason = Literal["end", "stop", "length"]  # the EOS token, a stop string, max_new_tokens or a full context


@dataclass(frozen=True)
class Completion:
    prompt: str
    text: str  # what follows the prompt
    n_tokens: int  # generated, an EOS token included
    finish_reason: Reason


@dataclass(frozen=True)
class Choice:
    """A token that was generated, and what the model gave for it before temperature and the like: nats."""

    token: int
    logprob: float
    alternatives: list[tuple[int, float]]  # the likeliest tokens with their logprobs, the likeliest first


class Row:
    """A prompt and what follows it so far."""

    def __init__(
        self, prompt: str, ids: list[int], room: int, sampling: Sampling, tokenizer: Tokenizer, n_logprobs: int | None
    ) -> None:
        """`room`: tokens that may come; `n_logprobs`: alternatives to note with each token, None to note nothing."""
        self.prompt, self.ids, self.sampling, self.n_logprobs = prompt, ids, sampling, n_logprobs
        self.alike = replace(sampling, seed=0, max_new_tokens=1, stop=())  # rows where this is equal are drawn together
        self.pieces: list[str] = []  # of text, one a token, perhaps empty
        self.choices: list[Choice] = []  # one a token but for EOS, with `n_logprobs`
        self.n_tokens = 0
        self.finish_reason: Reason | None = None
        self._room = room
        self._spelling = Spelling(tokenizer, ids, sampling.stop)
        self._uniforms = [] if sampling.temperature == 0 else uniforms(sampling, prompt, room).tolist()
        self._seen = set(ids) if sampling.repetition_penalty != 1 else set()

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self._room - self.n_tokens

    @property
    def uniform(self) -> float:
        """The random number of the next token."""
        return self._uniforms[self.n_tokens] if self._uniforms else 1.0

    def seen(self, n_vocab: int) -> Tensor:
        """The tokens that are there already, bool [V]."""
        seen_V = torch.zeros(n_vocab, dtype=torch.bool)
        seen_V[list(self._seen)] = True
        return seen_V

    def take(self, token: int, eos_ids: frozenset[int]) -> None:
        """Take the next token: one more piece of text, and the reason to finish if there is one."""
        self.n_tokens += 1
        if self.sampling.repetition_penalty != 1:
            self._seen.add(token)
        ended = token in eos_ids
        piece = "" if ended else self._spelling.add(token)
        if (ended or not self.room) and not self._spelling.stopped:
            piece += self._spelling.rest()
        self.pieces.append(piece)
        if self._spelling.stopped:
            self.finish_reason = "stop"
        elif ended:
            self.finish_reason = "end"
        elif not self.room:
            self.finish_reason = "length"

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        return Completion(self.prompt, "".join(self.pieces), self.n_tokens, self.finish_reason)


class Batch:
    def __init__(self, model: MoEGPT, n_vocab: int, holes_V: Tensor | None, eos_ids: frozenset[int]) -> None:
        """`n_vocab`: rows of the head that are tokens; `holes_V`: those of them that are none, as indices."""
        self.rows: list[Row] = []
        self._decoder = Decoder(model)
        self._n_vocab, self._holes_V, self._eos_ids = n_vocab, holes_V, eos_ids
        self._logits_BV: Tensor | None = None  # after what was read
        self._token_B: Tensor | None = None  # chosen and not read yet: a text is shown before the model goes on

    def add(self, rows: list[Row]) -> None:
        """Read the prompts of these; raises nothing for what `Generator.row` made."""
        before_BV = self._read()
        added_BV = self._decoder.add([row.ids for row in rows], max(row.room for row in rows) - 1)
        self._logits_BV = added_BV if before_BV is None else torch.cat([before_BV, added_BV])
        self.rows = [*self.rows, *rows]

    @torch.inference_mode()
    def step(self) -> None:
        """Give every row a token; rows that are done with it leave."""
        logits_BV = self._read()
        assert logits_BV is not None
        logits_BV = logits_BV[:, : self._n_vocab].float()
        if self._holes_V is not None:
            logits_BV = logits_BV.index_fill(1, self._holes_V, -torch.inf)
        self._token_B, self._logits_BV = self._chosen(logits_BV), None
        for i, (row, token) in enumerate(zip(self.rows, self._token_B.tolist(), strict=True)):
            if row.n_logprobs is not None and token not in self._eos_ids:
                row.choices.append(_choice(logits_BV[i], token, row.n_logprobs))
            row.take(token, self._eos_ids)
        self._keep([i for i, row in enumerate(self.rows) if row.finish_reason is None])

    def drop(self, dropped: list[Row]) -> None:
        """Go on without these rows, those that left already among them."""
        self._keep([i for i, row in enumerate(self.rows) if row not in dropped])

    def _keep(self, kept: list[int]) -> None:
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in kept]
        self._decoder.keep(kept)
        self._token_B = self._token_B[kept] if kept and self._token_B is not None else None
        self._logits_BV = self._logits_BV[kept] if kept and self._logits_BV is not None else None

    def _read(self) -> Tensor | None:
        """The logits after the last token of each row; None where there is no row."""
        if self._token_B is not None:
            self._logits_BV, self._token_B = self._decoder.step(self._token_B), None
        return self._logits_BV

    def _chosen(self, logits_BV: Tensor) -> Tensor:
        alike: dict[Sampling, list[int]] = {}
        for i, row in enumerate(self.rows):
            alike.setdefault(row.alike, []).append(i)
        if len(alike) == 1:
            return self._drawn(logits_BV, self.rows)
        token_B = torch.empty(len(self.rows), dtype=torch.int64, device=logits_BV.device)
        for rows in alike.values():
            token_B[rows] = self._drawn(logits_BV[rows], [self.rows[i] for i in rows])
        return token_B

    def _drawn(self, logits_BV: Tensor, rows: list[Row]) -> Tensor:
        """A token of each row; the rows' settings are alike."""
        sampling, device = rows[0].alike, logits_BV.device
        seen_BV = None
        if sampling.repetition_penalty != 1:
            seen_BV = torch.stack([row.seen(self._n_vocab) for row in rows]).to(device)
        uniform_B = torch.tensor([row.uniform for row in rows], dtype=torch.float64, device=exact(device))
        return draw(shaped(logits_BV, seen_BV, sampling), sampling, uniform_B)


def _choice(logits_V: Tensor, token: int, n_alternatives: int) -> Choice:
    logprob_V = logits_V.log_softmax(-1)
    values, tokens = logprob_V.topk(min(n_alternatives, logprob_V.numel()))
    return Choice(token, float(logprob_V[token]), list(zip(tokens.tolist(), values.tolist(), strict=True)))
