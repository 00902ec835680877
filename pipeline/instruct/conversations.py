"""A conversation out of a record, in each of the shapes that people have.

conversation = of_record({"messages": [{"role": "user", "content": "Hi"}, …]})
of_record({"conversations": [{"from": "human", "value": "Hi"}, …]})               # ShareGPT
of_record({"instruction": "Add", "input": "1, 2", "output": "3"})                 # Alpaca
of_record({"text": "Once upon a time"})                                           # no turns: all is trained
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

_ROLES = {
    **{name: "user" for name in ("user", "human")},
    **{name: "assistant" for name in ("assistant", "gpt", "model", "chatgpt")},
    "system": "system",
}


@dataclass(frozen=True)
class Conversation:
    """Turns, or a plain text; and what an answer can be checked for, where the source says."""

    messages: list[dict[str, str]]  # role and content; empty: a plain text
    text: str = ""
    constraints: dict[str, Any] | None = None


def of_record(record: Any, cut: Counter[str] | None = None) -> Conversation:
    """Raises ValueError, in words, for what is no conversation. `cut` counts turns that are left out, by reason."""
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}, not an object")
    constraints = record.get("constraints")
    if constraints is not None and not isinstance(constraints, dict):
        raise ValueError(f"constraints is a {type(constraints).__name__}, not an object")
    turns = next((record[key] for key in ("messages", "conversations") if record.get(key) is not None), None)
    if turns is not None:
        return Conversation(_settled(_turns(turns), Counter() if cut is None else cut), constraints=constraints)
    if record.get("instruction") is not None:
        question, answer = _text(record, "instruction"), _text(record, "output")
        if record.get("input"):
            question = f"{question}\n\n{_text(record, 'input')}"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return Conversation(turns, constraints=constraints)
    if record.get("text") is not None:
        return Conversation([], _text(record, "text"), constraints)
    known = ", ".join(record) or "no field"
    raise ValueError(f"has {known}; allowed: messages, conversations, instruction with output, or text")


def _turns(turns: Any) -> list[dict[str, str]]:
    if not isinstance(turns, list) or not turns:
        raise ValueError("its turns are no list, or an empty one")
    found = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise ValueError(f"turn {number} is a {type(turn).__name__}, not an object")
        role, content = turn.get("role", turn.get("from")), "content" if "role" in turn else "value"
        if role not in _ROLES:
            raise ValueError(f"turn {number} is of {role!r}; allowed: {', '.join(_ROLES)}")
        found.append({"role": _ROLES[role], "content": _text(turn, content, f"turn {number}: ")})
    return found


def _settled(turns: list[dict[str, str]], cut: Counter[str]) -> list[dict[str, str]]:
    """Turns in the order system, user, assistant, user, assistant, …"""
    begin = 1 if turns[0]["role"] == "system" else 0
    while begin < len(turns) and turns[begin]["role"] == "assistant":
        del turns[begin]
        cut["an answer before the first question"] += 1
    while turns and turns[-1]["role"] == "user":
        del turns[-1]
        cut["a question without an answer at the end"] += 1
    for number, turn in enumerate(turns[begin:]):
        wanted = ("user", "assistant")[number % 2]
        if turn["role"] != wanted:
            raise ValueError(f"turn {begin + number + 1} is of {turn['role']}, where one of {wanted} should come")
    if len(turns) <= begin:
        raise ValueError("has no answer of an assistant")
    return turns


def _text(record: dict[str, Any], key: str, where: str = "") -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{where}{key} is {'missing' if value is None else f'a {type(value).__name__}, not text'}")
    if not value.strip():
        raise ValueError(f"{where}{key} is empty")
    return value
