"""How much of a text stands word for word in the training text: the longest run of tokens that both have.

    index = Index(train_tokens)
    index.longest(tokens_of_a_story)        # Overlap(length=17, at=4, in_training=81234)

An index of single tokens: for each token the places where it occurs, in order. Memory is 4 bytes a training token
beside the tokens themselves; what is searched is exact, nothing is hashed.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Overlap:
    """Tokens [at, at + length) of the text are tokens [in_training, in_training + length) of the training text."""

    length: int
    at: int
    in_training: int


class Index:
    """Where each token occurs in the training tokens."""

    def __init__(self, tokens_N: np.ndarray) -> None:
        """`tokens_N`: integers from 0 up, fewer than 2^31 of them."""
        counts = np.bincount(tokens_N)
        self._tokens_N = tokens_N.astype(np.uint16 if len(counts) <= 2**16 else np.int32)
        self._places_N = np.argsort(self._tokens_N, kind="stable").astype(np.int32)
        self._begins_V = np.concatenate([[0], np.cumsum(counts)])

    def longest(self, text_M: np.ndarray) -> Overlap:
        """The longest run of the text that occurs in the training tokens; of equal ones the first. Length 0: none.

        From each place in the text on, a run must beat the best so far, so all tokens of one that is longer by one
        must agree: the places of the rarest among them are looked at, and those that agree throughout go on.
        """
        best = Overlap(0, 0, 0)
        count_M = self._counts(text_M)
        for at in range(len(text_M)):
            length = best.length + 1
            if at + length > len(text_M):
                break
            rarest = at + int(count_M[at : at + length].argmin())
            places = self._places(text_M[rarest]) - (rarest - at) if count_M[rarest] else self._places_N[:0]
            places = places[(places >= 0) & (places <= len(self._tokens_N) - length)]
            for step in range(length):
                places = places[self._tokens_N[places + step] == text_M[at + step]]
            while len(places):
                best = Overlap(length, at, int(places[0]))
                if at + length == len(text_M):
                    break
                places = places[places < len(self._tokens_N) - length]
                places = places[self._tokens_N[places + length] == text_M[at + length]]
                length += 1
        return best

    def _places(self, token: int) -> np.ndarray:
        return self._places_N[self._begins_V[token] : self._begins_V[token + 1]]

    def _counts(self, text_M: np.ndarray) -> np.ndarray:
        known = text_M < len(self._begins_V) - 1
        token_M = np.where(known, text_M, 0)
        return np.where(known, self._begins_V[token_M + 1] - self._begins_V[token_M], 0)
