"""Requests and answers in the shape of OpenAI's API, for completions and for chats.

Source: platform.openai.com/docs/api-reference/completions and /chat. What is asked for and not done here is refused.
"""

import json
import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError
from pipeline.generate.batch import Choice, Reason, Row
from pipeline.generate.generation import Generator
from pipeline.generate.sampling import Sampling

_FINISHED: dict[Reason, str] = {"end": "stop", "stop": "stop", "length": "length"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _StreamOptions(_Strict):
    include_usage: bool = False


class _Asked(_Strict):
    """What completions and chats share. null is the same as leaving a field out."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None  # as many as the context has left where it is absent
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None  # another each time where it is absent
    stop: str | Annotated[list[str], Field(max_length=16)] = []
    n: Annotated[int, Field(ge=1, le=16)] = 1
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    user: str | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0  # repetition_penalty is what there is
    presence_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0

    def samplings(self, context: int) -> list[Sampling]:
        """The settings of each of the `n` answers; raises UserError for a value out of range."""
        first = secrets.randbelow(2**31) if self.seed is None else self.seed
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        penalty, most = self.repetition_penalty, self.max_tokens or context
        return [
            Sampling(most, self.temperature, self.top_k, self.top_p, self.min_p, penalty, first + i, stop)
            for i in range(self.n)
        ]


class CompletionAsked(_Asked):
    prompt: str | Annotated[list[str] | list[int] | list[list[int]], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def prompts(self, generator: Generator) -> list[tuple[str, list[int]]]:
        """Text and tokens of each prompt; text is empty for one that was given as tokens."""
        given: list[Any] = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if isinstance(given[0], int):
            given = [given]
        for prompt in given:
            if not isinstance(prompt, str) and not all(0 <= token < generator.n_vocab for token in prompt):
                raise UserError(f"prompt: a token out of range; allowed: 0 to {generator.n_vocab - 1}")
        return [(prompt, generator.encode(prompt)) if isinstance(prompt, str) else ("", prompt) for prompt in given]


class _Part(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]
    name: str | None = None

    def turn(self) -> dict[str, str]:
        """As a chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


Messages = Annotated[list[Message], Field(min_length=1)]


class ChatAsked(_Asked):
    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0


class InspectionAsked(_Strict):
    """A text, or a conversation, to look at: not of OpenAI's API."""

    model: str | None = None
    text: str | None = None
    messages: Messages | None = None
    alternatives: Annotated[int, Field(ge=0, le=20)] = 5


A = TypeVar("A", bound=BaseModel)


def read(kind: type[A], body: bytes) -> A:
    """The request in a body; raises UserError, which names the field, its value and what is allowed."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError("the body is no JSON in UTF-8; send one JSON object") from None
    if not isinstance(given, dict):
        raise UserError(f"the body is {_shown(given)}; send one JSON object")
    try:
        return kind.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise UserError(_explained(error, list(kind.model_fields))) from None


def _explained(error: ValidationError, known: list[str]) -> str:
    problems = error.errors(include_url=False)
    deepest = max(problems, key=lambda problem: len(problem["loc"]))  # of a field that may be several things
    name = ".".join(str(part) for part in deepest["loc"] if not str(part).endswith("]") and part not in ("str", "int"))
    if deepest["type"] == "missing":
        return f"{name}: missing; give it"
    if deepest["type"] == "extra_forbidden":
        return f"{name}: not supported here; known: {', '.join(known)}"
    words = deepest["msg"][0].lower() + deepest["msg"][1:]
    return f"{name} = {_shown(deepest['input'])}: {words}"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


# --- answers ----------------------------------------------------------------------------------------------------------


def usage(rows: list[Row], n_prompts: int) -> dict[str, int]:
    """Tokens of the prompts, each counted once, and of the answers."""
    prompt = sum(len(row.ids) for row in rows[:: len(rows) // n_prompts])
    completion = sum(row.n_tokens for row in rows)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def finished(row: Row) -> str | None:
    return _FINISHED[row.finish_reason] if row.finish_reason else None


class Completions:
    """How a text goes on."""

    object = chunk_object = "text_completion"

    @staticmethod
    def whole(text: str, logprobs: Any) -> dict[str, Any]:
        return {"text": text, "logprobs": logprobs}

    @staticmethod
    def chunk(text: str, logprobs: Any, first: bool) -> dict[str, Any]:
        return {"text": text, "logprobs": logprobs}

    @staticmethod
    def logprobs(choices: list[Choice], generator: Generator, before: list[Choice]) -> dict[str, Any]:
        """`before`: the tokens that came before, from whose text the offsets count on."""
        names = [generator.name(choice.token) for choice in choices]
        begin = sum(len(generator.name(choice.token)) for choice in before)
        return {
            "tokens": names,
            "token_logprobs": [choice.logprob for choice in choices],
            "top_logprobs": [_by_name(choice, generator) for choice in choices],
            "text_offset": [begin + sum(map(len, names[:i])) for i in range(len(names))],
        }


def _by_name(choice: Choice, generator: Generator) -> dict[str, float]:
    found: dict[str, float] = {}
    for token, value in choice.alternatives:
        found.setdefault(generator.name(token), value)  # parts of characters share a name: the likeliest has it
    return found


class Chats:
    """The assistant's turn."""

    object, chunk_object = "chat.completion", "chat.completion.chunk"

    @staticmethod
    def whole(text: str, logprobs: Any) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": logprobs}

    @staticmethod
    def chunk(text: str, logprobs: Any, first: bool) -> dict[str, Any]:
        return {"delta": ({"role": "assistant"} if first else {}) | {"content": text}, "logprobs": logprobs}

    @staticmethod
    def logprobs(choices: list[Choice], generator: Generator, before: list[Choice]) -> dict[str, Any]:
        def one(token: int, logprob: float) -> dict[str, Any]:
            name = generator.name(token)
            whole = "\N{REPLACEMENT CHARACTER}" not in name  # else part of a character, whose bytes are not known here
            return {"token": name, "logprob": logprob, "bytes": list(name.encode()) if whole else None}

        content = [
            one(choice.token, choice.logprob) | {"top_logprobs": [one(*other) for other in choice.alternatives]}
            for choice in choices
        ]
        return {"content": content, "refusal": None}
