"""Tokens into text as they come.

spelling = Spelling(tokenizer, prompt_ids, stop=("\n",))
piece = spelling.add(token); spelling.stopped; last = spelling.rest()
"""

from tokenizers import Tokenizer

_CONTEXT = 6  # tokens before a new one that may change how it is spelt (a space, a character's first bytes)


class Spelling:
    """Gives only whole characters, and nothing that may turn out to be a stop string."""

    def __init__(self, tokenizer: Tokenizer, before: list[int], stop: tuple[str, ...] = ()) -> None:
        """`before`: the tokens that the new ones follow."""
        self._tokenizer, self._stop = tokenizer, stop
        self._ids = before[-_CONTEXT:]
        self._released = len(self._ids)
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
