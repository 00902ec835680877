"""A conversation with a model: the turns so far are its context, the oldest go when that is full.

    talk = Chat(generator, sampling)
    for piece in talk.say("Once upon a time"): print(piece, end="")

A tokenizer with a chat template makes turns of user and assistant; without one (a base model) the text just goes on.
"""

import re
from collections.abc import Generator as Pieces
from dataclasses import replace
from typing import Any

from tokenizers import AddedToken

from pipeline.errors import UserError
from pipeline.generate.generation import Completion, Generator
from pipeline.generate.sampling import Sampling
from pipeline.tokens import tokenizer as vocabulary


class Chat:
    def __init__(self, generator: Generator, sampling: Sampling) -> None:
        """Raises UserError for a chat template that cannot be read."""
        self._generator, self._sampling = generator, sampling
        self._template = _template(generator)
        self.reset()

    @property
    def templated(self) -> bool:
        return self._template is not None

    def reset(self) -> None:
        """Forget all turns."""
        self._ids: list[int] = []  # of a base model's text
        self._messages: list[dict[str, str]] = []
        self._turns = 0
        self.forgotten = ""  # what the last `say` had to leave out, in words

    def say(self, text: str) -> Pieces[str, None, Completion]:
        """The model's answer to the next turn, piece by piece; an empty `text` lets a base model go on.

        Raises UserError, before the first piece, for a turn that is longer than the context, or empty where there is
        nothing to go on from. What was generated stays in the context, also if the caller stops early.
        """
        self.forgotten = ""
        # A share of the context is left for the answer, so that it is not forgotten word by word.
        most = self._generator.context - min(self._sampling.max_new_tokens, self._generator.context // 2)
        ids = self._next_messages(text, most) if self._template else self._next_text(text, most)
        self._turns += 1
        sampling = replace(self._sampling, seed=self._sampling.seed + self._turns - 1)  # or it would repeat itself
        return self._answer(self._generator.stream_ids(ids, sampling, text))

    def _answer(self, pieces: Pieces[str, None, Completion]) -> Pieces[str, None, Completion]:
        given: list[str] = []
        ended = False
        try:
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    ended = end.value.finish_reason == "end"
                    return end.value
                given.append(piece)
                yield piece
        finally:
            self._messages.append({"role": "assistant", "content": "".join(given)})
            if given:
                self._ids += self._generator.encode("".join(given))
            if ended:
                self._ids.append(min(self._generator.eos_ids))

    def _next_text(self, text: str, most: int) -> list[int]:
        """The text so far and the new line, without its beginning if that is too much."""
        going_on = bool(self._ids) and self._ids[-1] not in self._generator.eos_ids
        line = self._generator.encode(f"\n{text}" if going_on else text) if text else []
        self._refuse_longer(line, "this line")
        ids = self._ids + line
        if not ids:
            raise UserError("the prompt is empty; give the beginning of a text, a word is enough")
        most = max(most, len(line))  # a long line is kept whole, at the cost of the answer's room
        if len(ids) > most:
            self.forgotten = f"its first {len(ids) - most:,} tokens are"
        self._ids = ids[-most:]
        return list(self._ids)

    def _next_messages(self, text: str, most: int) -> list[int]:
        """The turns so far and the new one by the template, without the oldest if that is too much."""
        assert self._template is not None
        self._generator.encode(text)  # refuses what no token can write
        turns = [*self._messages, {"role": "user", "content": text}]
        left = turns
        while len(ids := self._template.ids(left)) > most and len(left) > 1:
            left = left[2:]
        self._refuse_longer(ids, "this turn")
        if len(left) < len(turns):
            self.forgotten = f"the first {(len(turns) - len(left)) // 2} turns are"
        self._messages = left
        return ids

    def _refuse_longer(self, ids: list[int], what: str) -> None:
        if len(ids) >= (context := self._generator.context):
            raise UserError(
                f"{what} has {len(ids):,} tokens; the model's context is {context:,}, so at most {context - 1:,} leave "
                "room for an answer: say less"
            )


class _Template:
    """The chat template beside a tokenizer, as transformers applies it (in a sandbox).

    A special token counts where the template writes it; in the text of a turn it is spelt out. To tell the two apart,
    each special token gets two characters of Unicode's private planes: one is in its place in the turns while the
    template is applied, the other is a second name that the tokenizer obeys.
    """

    def __init__(self, generator: Generator) -> None:
        from transformers import AutoTokenizer

        self._words: Any = AutoTokenizer.from_pretrained(generator.tokenizer_folder, local_files_only=True)
        self._tokenizer = vocabulary.load(generator.tokenizer_folder)  # spells special tokens out
        special = {i: token for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._in_turns = {token.content: chr(0xF0000 + n) for n, token in enumerate(special.values())}
        self._obeyed = {token.content: chr(0x100000 + n) for n, token in enumerate(special.values())}
        for token in special.values():
            name = self._obeyed[token.content]
            self._tokenizer.add_tokens([AddedToken(name, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)])
        self._id = {self._tokenizer.token_to_id(self._obeyed[token.content]): i for i, token in special.items()}

    def ids(self, messages: list[dict[str, str]]) -> list[int]:
        from jinja2 import TemplateError

        turns = [turn | {"content": _replaced(turn["content"], self._in_turns)} for turn in messages]
        try:
            text = self._words.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise UserError(f"the tokenizer's chat template does not take this conversation: {error}") from None
        text = _replaced(_replaced(text, self._obeyed), {sign: token for token, sign in self._in_turns.items()})
        return [self._id.get(i, i) for i in self._tokenizer.encode(text, add_special_tokens=False).ids]


def _replaced(text: str, names: dict[str, str]) -> str:
    """The text with each key of `names` that stands in it, the longest first, replaced by its value."""
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.sub(pattern, lambda found: names[found[0]], text) if names else text


def _template(generator: Generator) -> _Template | None:
    folder = generator.tokenizer_folder
    has_one = (folder / "chat_template.jinja").is_file() or bool(vocabulary.settings(folder).get("chat_template"))
    return _Template(generator) if has_one else None
