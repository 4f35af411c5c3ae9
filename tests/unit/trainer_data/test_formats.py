"""Rows of each format as conversations, and every way in which a row is refused."""

from typing import Any

import pytest
from finetune_trainer.data.formats import BadRow, alpaca, openai, parse

U, A, S = "user", "assistant", "system"


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Q", "output": "R"}, said((U, "Q"), (A, "R"))),
        ({"instruction": "Q", "input": "I", "output": "R"}, said((U, "Q\nI"), (A, "R"))),
        ({"instruction": "Q", "input": "", "output": "R", "history": None}, said((U, "Q"), (A, "R"))),
        (
            {"instruction": "Q", "output": "R", "system": "be brief", "history": [["q", "r"]], "source": "mine"},
            said((S, "be brief"), (U, "q"), (A, "r"), (U, "Q"), (A, "R")),
        ),
    ],
)
def test_alpaca(row: dict[str, Any], expected: list[dict[str, str]]) -> None:
    assert alpaca(row) == expected


@pytest.mark.parametrize(
    "turns",
    [((U, "q"), (A, "r")), ((S, "s"), (U, "q"), (A, "r")), ((U, "q"), (A, "r"), (U, "q2"), (A, "r2"))],
)
def test_openai_is_taken_as_it_is(turns: tuple[tuple[str, str], ...]) -> None:
    assert openai({"messages": said(*turns), "id": 7}) == said(*turns)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q"}, "no 'instruction'; found the keys prompt, expected instruction: the question"),
        ({}, "no 'instruction'; found an empty object"),
        ({"instruction": "Q"}, "no 'output'; found the keys instruction"),
        ({"instruction": "Q", "output": 5}, "output: found int 5, expected the answer"),
        ({"instruction": "Q", "output": " \n"}, "output: found empty text"),
        ({"instruction": None, "output": "R"}, "instruction: found null"),
        ({"instruction": "Q", "input": ["x"], "output": "R"}, "input: found list ['x'], expected text or nothing"),
        ({"instruction": "Q", "output": "R", "history": [["q"]]}, "history 1: found list ['q'], expected [question"),
        ({"instruction": "Q", "output": "R", "history": "q"}, "history: found str 'q', expected a list"),
        ({"messages": []}, "this looks like format: openai"),
    ],
)
def test_alpaca_refuses(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow) as error:
        parse(row, "alpaca")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "Q", "output": "R"}, "no 'messages': this looks like format: alpaca"),
        ({"messages": "hi"}, "messages: found str 'hi', expected a non-empty list"),
        ({"messages": []}, "messages: found list [], expected a non-empty list"),
        ({"messages": ["hi"]}, "message 1: found str 'hi', expected {role, content}"),
        ({"messages": said((U, "q"))}, "found a last message of role 'user', expected 'assistant'"),
        ({"messages": said((S, "s"))}, "found a last message of role 'system', expected 'assistant'"),
        ({"messages": said((A, "r"))}, "message 1: found role 'assistant', expected 'user'"),
        ({"messages": said((U, "q"), (U, "q"), (A, "r"))}, "message 2: found role 'user', expected 'assistant'"),
        ({"messages": said((S, "s"), (A, "r"))}, "message 2: found role 'assistant', expected 'user'"),
        ({"messages": said((U, "q"), (S, "s"), (A, "r"))}, "message 2: found role 'system', expected it in the first"),
        ({"messages": said((U, "q"), ("bot", "r"))}, "message 2: found role str 'bot', expected 'system', 'user' or"),
        ({"messages": said((U, "q"), ("tool", "r"))}, "message 2: tool calls can't be trained on yet"),
        (
            {"messages": [*said((U, "q")), {"role": A, "content": None, "tool_calls": [{}]}]},
            "message 2: tool calls can't be trained on yet",
        ),
        ({"messages": said((U, "q"), (A, "r")), "tools": [{}]}, "tools: tool calls can't be trained on yet"),
        ({"messages": said((U, "q"), (A, ""))}, "message 2: found empty content"),
        ({"messages": [{"role": U}, {"role": A, "content": "r"}]}, "message 1: found content null, expected text"),
        (
            {"messages": [{"role": U, "content": [{"type": "text"}]}]},
            "message 1: found content list [{'type': 'text'}], expected text",
        ),
        ([1, 2], "found list [1, 2], expected an object"),
        ("x" * 100, "found str 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..., expected an object"),
    ],
)
def test_openai_refuses(row: Any, message: str) -> None:
    with pytest.raises(BadRow) as error:
        parse(row, "openai")
    assert message in str(error.value)
