"""A conversation with a model: the turns so far are its context, the oldest go when that is full.

    talk = Chat(generator, sampling)
    for piece in talk.say("Once upon a time"): print(piece, end="")

A tokenizer with a chat template makes turns of user and assistant; without one (a base model) the text just goes on.
"""

from collections.abc import Generator as Pieces
from dataclasses import replace

from pipeline.errors import UserError
from pipeline.generate.generation import Completion, Generator
from pipeline.generate.sampling import Sampling
from pipeline.tokens.chat_template import ChatTemplate, has_one


class Chat:
    def __init__(self, generator: Generator, sampling: Sampling) -> None:
        """Raises UserError for a chat template that cannot be read."""
        self._generator, self._sampling = generator, sampling
        folder = generator.tokenizer_folder
        self._template = ChatTemplate(folder) if has_one(folder) else None
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
