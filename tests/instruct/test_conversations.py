"""Conversations out of records: every shape that people have, and words for what is none."""

from collections import Counter
from typing import Any

import pytest

from pipeline.instruct.conversations import of_record

PAIR = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": PAIR},
        {"conversations": PAIR},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
        {"instruction": "Hi", "input": "", "output": "Hello!"},
        {"messages": None, "instruction": "Hi", "output": "Hello!"},
    ],
)
def test_each_shape_is_the_same_conversation(record: dict[str, Any]) -> None:
    assert of_record(record).messages == PAIR


def test_an_input_follows_the_instruction_after_a_blank_line() -> None:
    found = of_record({"instruction": "Add.", "input": "1, 2", "output": "3"})
    assert found.messages[0]["content"] == "Add.\n\n1, 2"


def test_a_text_has_no_turns() -> None:
    assert of_record({"text": "Once upon a time"}).text == "Once upon a time"
    assert of_record({"text": "Once upon a time"}).messages == []


def test_turns_without_an_answer_are_cut_and_counted() -> None:
    cut: Counter[str] = Counter()
    system = {"role": "system", "content": "Be kind."}
    found = of_record({"messages": [system, PAIR[1], *PAIR, PAIR[0]]}, cut)
    assert found.messages == [system, *PAIR]
    assert cut == {"an answer before the first question": 1, "a question without an answer at the end": 1}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([], "a list, not an object"),
        ({"title": "x"}, "has title; allowed: messages, conversations, instruction with output, or text"),
        ({"messages": []}, "its turns are no list, or an empty one"),
        ({"messages": ["Hi"]}, "turn 1 is a str, not an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "turn 1 is of 'tool'; allowed: user, human, assistant"),
        ({"messages": [{"role": "user", "content": 3}]}, "turn 1: content is a int, not text"),
        ({"conversations": [{"from": "human", "value": " "}]}, "turn 1: value is empty"),
        ({"messages": [*PAIR, PAIR[1]]}, "turn 3 is of assistant, where one of user should come"),
        ({"messages": PAIR[:1]}, "has no answer of an assistant"),
        ({"instruction": "Add."}, "output is missing"),
        ({"messages": PAIR, "constraints": 3}, "constraints is a int, not an object"),
    ],
)
def test_what_is_no_conversation_is_said_in_words(record: Any, words: str) -> None:
    with pytest.raises(ValueError, match="^" + words.replace("(", r"\(")):
        of_record(record)
