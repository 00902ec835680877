"""The chat template beside a tokenizer: conversations as tokens, and which of them the assistant wrote.

    template = ChatTemplate(Path("models/finetuned"))
    template.ids(messages)                       # what a model goes on from
    ids, trained = template.marked(messages)     # a whole conversation, and where answers are

A special token counts where the template writes it; in the text of a turn it is spelt out. To tell the two apart, each
special token gets two characters of Unicode's private planes: one is in its place in the turns while the template is
applied, the other is a second name that the tokenizer obeys.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken

from pipeline.errors import UserError
from pipeline.tokens import tokenizer as vocabulary

FILE = "chat_template.jinja"
Messages = list[dict[str, str]]  # role and content


def has_one(folder: Path) -> bool:
    return (folder / FILE).is_file() or bool(vocabulary.settings(folder).get("chat_template"))


class ChatTemplate:
    """As transformers applies it, in a sandbox. Raises UserError for a template that cannot be read."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._words: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._tokenizer = vocabulary.load(folder)  # spells special tokens out
        special = {i: token for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._in_turns = {token.content: chr(0xF0000 + n) for n, token in enumerate(special.values())}
        self._obeyed = {token.content: chr(0x100000 + n) for n, token in enumerate(special.values())}
        for token in special.values():
            name = self._obeyed[token.content]
            self._tokenizer.add_tokens([AddedToken(name, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)])
        self._id = {self._tokenizer.token_to_id(self._obeyed[token.content]): i for i, token in special.items()}

    def ids(self, messages: Messages) -> list[int]:
        """The conversation so far, up to where the assistant's answer begins."""
        return [self._id.get(i, i) for i in self._encoded(self._text(messages, prompt=True)).ids]

    def marked(self, messages: Messages) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a whole conversation, and for each whether it is of an answer or ends one: int64 and bool [T].

        Raises UserError for a template that writes earlier turns otherwise once later ones are there.
        """
        whole = self._text(messages, prompt=False)
        encoding = self._encoded(whole)
        starts = np.array([begin for begin, _ in encoding.offsets], dtype=np.int64)
        trained = np.zeros(len(starts), dtype=bool)
        for n, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, until = self._text(messages[:n], prompt=True), self._text(messages[: n + 1], prompt=False)
            if not (whole.startswith(until) and until.startswith(before)):
                raise UserError(
                    "the tokenizer's chat template writes a turn otherwise once others follow, so what the assistant "
                    "wrote cannot be told apart; take a template that only adds to what it has written"
                )
            trained |= (starts >= len(before)) & (starts < len(until))
        return np.array([self._id.get(i, i) for i in encoding.ids], dtype=np.int64), trained

    def _encoded(self, text: str) -> Any:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _text(self, messages: Messages, prompt: bool) -> str:
        from jinja2 import TemplateError

        if not messages:
            return ""
        turns = [turn | {"content": _replaced(turn["content"], self._in_turns)} for turn in messages]
        try:
            text = self._words.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        except TemplateError as error:
            raise UserError(f"the tokenizer's chat template does not take this conversation: {error}") from None
        return _replaced(_replaced(text, self._obeyed), {sign: token for token, sign in self._in_turns.items()})


def _replaced(text: str, names: dict[str, str]) -> str:
    """The text with each key of `names` that stands in it, the longest first, replaced by its value."""
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.sub(pattern, lambda found: names[found[0]], text) if names else text
