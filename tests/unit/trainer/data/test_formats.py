"""Rows of each format as samples, and every error of a row."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from finetune_api.consistency import FORMATS
from finetune_api.data import ColumnsSpec, Format, TagsSpec
from finetune_trainer.data.samples import Conversation, Document, LabelledAnswer, Preference, Prompt, RowError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.trainer.rows import parse, parse_prompt

U, A, S, T = "user", "assistant", "system", "tool"


def refusal(row: Any, format: str) -> RowError:
    with pytest.raises(RowError) as error:
        parse(row, format)
    return error.value


def said(*turns: tuple[str, str]) -> list[Any]:
    return [{"role": role, "content": content} for role, content in turns]


def shared(*turns: tuple[str, str]) -> list[Any]:
    return [{"from": role, "value": content} for role, content in turns]


GOOD, BAD = said((A, "good")), said((A, "bad"))
Q = said((U, "q"))


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def chat(row: Any, format: str, columns: ColumnsSpec | None = None, tags: TagsSpec | None = None) -> list[Any]:
    sample = parse(row, format, columns, tags)
    assert isinstance(sample, Conversation)
    return sample.messages


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Q", "output": "R"}, said((U, "Q"), (A, "R"))),
        ({"instruction": "Q", "input": "I", "output": "R"}, said((U, "Q\nI"), (A, "R"))),
        ({"instruction": "Q", "input": "", "output": "R", "history": None}, said((U, "Q"), (A, "R"))),
        ({"instruction": "Q", "input": "", "output": '[{"a": 1}]', "history": ""}, said((U, "Q"), (A, '[{"a": 1}]'))),
        ({"instruction": "Q", "output": "R", "history": '[["q", "r"]]'}, said((U, "q"), (A, "r"), (U, "Q"), (A, "R"))),
        (
            {"instruction": "Q", "output": "R", "system": "be brief", "history": [["q", "r"]], "source": "mine"},
            said((S, "be brief"), (U, "q"), (A, "r"), (U, "Q"), (A, "R")),
        ),
    ],
)
def test_alpaca(row: dict[str, Any], expected: list[Any]) -> None:
    assert chat(row, "alpaca") == expected


@pytest.mark.parametrize(
    "turns",
    [((U, "q"), (A, "r")), ((S, "s"), (U, "q"), (A, "r")), ((U, "q"), (A, "r"), (U, "q2"), (A, "r2"))],
)
def test_openai_messages_are_unchanged(turns: tuple[tuple[str, str], ...]) -> None:
    assert chat({"messages": said(*turns), "id": 7}, "openai") == said(*turns)


def test_openai_tools_and_reasoning() -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"name": "g", "arguments": None},
    ]
    row = {
        "messages": [
            *said((U, "q")),
            {"role": A, "content": None, "tool_calls": calls},
            {"role": T, "content": "1", "tool_call_id": "c1", "name": None},
            {"role": T, "content": "2"},
            {"role": A, "content": "r", "reasoning_content": "because", "tool_calls": None},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}, {"name": "g", "parameters": {}}],
    }
    sample = parse(row, "openai")
    assert sample == Conversation(
        [
            *said((U, "q")),
            {"role": "assistant", "content": "", "tool_calls": [{**call("f", x=1), "id": "c1"}, call("g")]},
            {"role": "tool", "content": "1", "tool_call_id": "c1"},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "r", "reasoning_content": "because"},
        ],
        [
            {"type": "function", "function": {"name": "f"}},
            {"type": "function", "function": {"name": "g", "parameters": {}}},
        ],
    )


@pytest.mark.parametrize("weight", [0, 1, 0.0])
def test_the_weight_of_an_answer_is_kept(weight: float) -> None:
    answer = {"role": A, "content": "r", "weight": weight}
    assert chat({"messages": [*said((U, "q")), answer]}, "openai")[-1]["weight"] == weight
    unset = {"role": A, "content": "r", "weight": None}
    assert chat({"messages": [*said((U, "q")), unset]}, "openai") == said((U, "q"), (A, "r"))


@pytest.mark.parametrize("weight", [2, 0.5, "1", [1]])
def test_other_weights_are_rejected(weight: Any) -> None:
    bad = refusal({"messages": [*said((U, "q")), {"role": A, "content": "r", "weight": weight}]}, "openai")
    assert bad.rule == "bad-weight"
    assert "message 2: found weight" in str(bad)


def test_sharegpt_with_tools() -> None:
    row = {
        "conversations": shared(
            ("human", "q"),
            ("function_call", '[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": "{}"}]'),
            ("observation", "1"),
            ("observation", "2"),
            ("gpt", "r"),
        ),
        "system": "s",
        "tools": '[{"name": "f"}]',
    }
    assert parse(row, "sharegpt") == Conversation(
        [
            *said((S, "s"), (U, "q")),
            {"role": "assistant", "content": "", "tool_calls": [call("f", x=1), call("g")]},
            *said((T, "1\n2"), (A, "r")),
        ],
        [{"type": "function", "function": {"name": "f"}}],
    )


def test_a_system_message_replaces_the_column() -> None:
    row = {"messages": said((S, "message"), (U, "q"), (A, "r")), "system": "column"}
    assert chat(row, "openai")[0]["content"] == "message"


def test_messages_as_json_from_csv() -> None:
    assert chat(
        {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]'}, "openai"
    ) == said((U, "q"), (A, "r"))


def test_other_names() -> None:
    alpaca = ColumnsSpec(prompt="q", query="more", response="a", history="before", system="s")
    row = {"q": "Q", "more": "M", "a": "R", "before": [["q", "r"]], "s": "S", "output": 1}
    assert chat(row, "alpaca", alpaca) == said((S, "S"), (U, "q"), (A, "r"), (U, "Q\nM"), (A, "R"))
    tags = TagsSpec(role="who", content="what", user="me", assistant="bot", observation="result")
    talk = [{"who": who, "what": what} for who, what in (("me", "q"), ("bot", "r"), ("result", "1"), ("bot", "r2"))]
    expected = said((U, "q"), (A, "r"), (T, "1"), (A, "r2"))
    assert chat({"talk": talk}, "openai", ColumnsSpec(messages="talk"), tags) == expected
    assert chat({"talk": talk}, "sharegpt", ColumnsSpec(messages="talk"), tags) == expected
    assert parse({"body": "words"}, "text", ColumnsSpec(text="body")) == Document("words")
    pair = {"q": "q", "+": "good", "-": "bad"}
    assert parse(pair, "preference", ColumnsSpec(prompt="q", chosen="+", rejected="-")) == Preference(Q, GOOD, BAD)
    judged = {"q": "q", "a": "good", "liked": False}
    assert parse(judged, "kto", ColumnsSpec(prompt="q", response="a", label="liked")) == LabelledAnswer(Q, GOOD, False)
    talks = {"+": shared(("human", "q"), ("gpt", "good")), "-": shared(("human", "q"), ("gpt", "bad"))}
    assert parse(talks, "preference", ColumnsSpec(chosen="+", rejected="-")) == Preference(Q, GOOD, BAD)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, Q),
        ({"prompt": "q", "chosen": "good", "rejected": "bad", "system": "s"}, said((S, "s"), (U, "q"))),
        ({"prompt": Q, "chosen": GOOD, "rejected": BAD}, Q),
        ({"prompt": Q, "chosen": "good", "rejected": BAD}, Q),
        ({"chosen": Q + GOOD, "rejected": Q + BAD}, Q),
        ({"prompt": "q", "chosen": Q + GOOD, "rejected": Q + BAD}, Q),
        ({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, Q),
        ({"instruction": "q", "input": "i", "chosen": "good", "rejected": "bad"}, said((U, "q\ni"))),
        ({"messages": Q, "chosen": GOOD[0], "rejected": BAD[0]}, Q),
        (
            {
                "conversations": shared(("human", "q")),
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            Q,
        ),
    ],
)
def test_preference(row: dict[str, Any], prompt: list[Any]) -> None:
    assert parse(row, "preference") == Preference(prompt, GOOD, BAD)


def test_preference_between_conversations_of_several_turns() -> None:
    first = said((U, "q"), (A, "r"), (U, "q2"))
    sample = parse({"chosen": first + GOOD, "rejected": first + BAD}, "preference")
    assert sample == Preference(first, GOOD, BAD)


def test_an_answer_that_is_json_stays_text() -> None:
    row = {"prompt": "q", "chosen": '[{"role": "user"}]', "rejected": '{"from": 1}'}
    assert parse(row, "preference") == Preference(Q, said((A, '[{"role": "user"}]')), said((A, '{"from": 1}')))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "good", "label": True},
        {"prompt": "q", "completion": "good", "label": "True"},
        {"prompt": Q, "completion": GOOD, "label": True},
        {"messages": Q + GOOD, "label": True},
        {"instruction": "q", "input": "", "output": "good", "kto_tag": True},
        {"conversations": shared(("human", "q"), ("gpt", "good")), "kto_tag": True},
    ],
)
def test_kto(row: dict[str, Any]) -> None:
    assert parse(row, "kto") == LabelledAnswer(Q, GOOD, True)


@pytest.mark.parametrize(
    ("row", "rule", "message"),
    [
        (
            {"prompt": "Q"},
            "missing-column",
            "no 'instruction'; found the keys prompt, expected instruction: the question",
        ),
        ({}, "missing-column", "no 'instruction'; found an empty object"),
        ({"instruction": "Q"}, "missing-column", "no 'output'; found the keys instruction"),
        ({"instruction": "Q", "output": 5}, "wrong-type", "output: found int 5, expected the answer"),
        ({"instruction": "Q", "output": " \n"}, "empty-text", "output: found empty text"),
        ({"instruction": None, "output": "R"}, "wrong-type", "instruction: found null"),
        (
            {"instruction": "Q", "input": ["x"], "output": "R"},
            "wrong-type",
            "input: found list ['x'], expected text or",
        ),
        (
            {"instruction": "Q", "output": "R", "history": [["q"]]},
            "wrong-type",
            "history 1: found list ['q'], expected [",
        ),
        ({"instruction": "Q", "output": "R", "history": "q"}, "wrong-type", "history: found str 'q', expected a list"),
        (
            {"instruction": "Q", "output": "R", "tools": "f"},
            "bad-tools",
            "tools: found str 'f', expected a list of func",
        ),
        (
            {"instruction": "Q", "output": "R", "tools": [{}]},
            "bad-tools",
            "tools 1: found dict {}, expected {name, desc",
        ),
        ({"messages": []}, "missing-column", ". It has 'messages': use format openai"),
        ({"conversations": []}, "missing-column", ". It has 'conversations': use format sharegpt"),
    ],
)
def test_alpaca_rejects(row: dict[str, Any], rule: str, message: str) -> None:
    found = refusal(row, "alpaca")
    assert (found.rule, message in str(found)) == (rule, True), found


@pytest.mark.parametrize(
    ("row", "rule", "message"),
    [
        ({"instruction": "Q", "output": "R"}, "missing-column", "It has 'instruction': use format alpaca"),
        ({"messages": "hi"}, "wrong-type", "messages: found str 'hi', expected a non-empty list"),
        ({"messages": []}, "wrong-type", "messages: found list [], expected a non-empty list"),
        ({"messages": ["hi"]}, "wrong-type", "message 1: found str 'hi', expected {role, content}"),
        ({"messages": said((U, "q"))}, "no-answer", "found a last message of role 'user', expected 'assistant'"),
        ({"messages": said((S, "s"))}, "no-answer", "found a last message of role 'system', expected 'assistant'"),
        ({"messages": said((A, "r"))}, "wrong-role-order", "message 1: found role 'assistant', expected 'user'"),
        (
            {"messages": said((U, "q"), (U, "q"), (A, "r"))},
            "wrong-role-order",
            "message 2: found role 'user', expected 'a",
        ),
        (
            {"messages": said((S, "s"), (A, "r"))},
            "wrong-role-order",
            "message 2: found role 'assistant', expected 'user'",
        ),
        (
            {"messages": said((U, "q"), (S, "s"), (A, "r"))},
            "wrong-role-order",
            "message 2: found role 'system', expected",
        ),
        (
            {"messages": said((U, "q"), (T, "r"))},
            "wrong-role-order",
            "message 2: found role 'tool', expected 'assistant'",
        ),
        ({"messages": said((U, "q"), (A, "r"), (T, "1"))}, "no-answer", "found a last message of role 'tool'"),
        (
            {"messages": said((U, "q"), ("bot", "r"))},
            "unknown-role",
            "message 2: found role str 'bot', expected 'system', ",
        ),
        ({"messages": said((U, "q"), (A, ""))}, "empty-text", "message 2: found empty content"),
        (
            {"messages": [{"role": U}, {"role": A, "content": "r"}]},
            "wrong-type",
            "message 1: found content null, expected",
        ),
        (
            {"messages": [{"role": U, "content": [{"type": "text"}]}]},
            "wrong-type",
            "message 1: content: part 1: found dict {'type': 'text'}, expected {type: text, text}",
        ),
        (
            {"messages": [*Q, {"role": A, "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "bad-tools",
            "message 2: tool_calls: arguments of 'f': found str '{', expected an object, or its JSON",
        ),
        ([1, 2], "not-an-object", "found list [1, 2], expected an object"),
        ("x" * 100, "not-an-object", "found str 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..., expected an object"),
    ],
)
def test_openai_rejects(row: Any, rule: str, message: str) -> None:
    found = refusal(row, "openai")
    assert (found.rule, message in str(found)) == (rule, True), found


@pytest.mark.parametrize(
    ("row", "format", "rule", "message"),
    [
        (
            {"conversations": shared(("human", "q"), ("human", "q"))},
            "sharegpt",
            "wrong-role-order",
            "message 2: found role 'human', expected 'gpt' or 'function_call': after",
        ),
        (
            {"conversations": said((U, "q"))},
            "sharegpt",
            "unknown-role",
            "message 1: no 'from'; found the keys role, content: use format openai",
        ),
        (
            {"conversations": shared(("human", "q"), ("function_call", "f()"))},
            "sharegpt",
            "bad-tools",
            "message 2: found str 'f()', expected JSON: {",
        ),
        ({"messages": [1]}, "sharegpt", "missing-column", "It has 'messages': use format openai"),
        ({"content": "x"}, "text", "missing-column", "no 'text'; found the keys content, expected text: a document"),
        ({"text": " "}, "text", "empty-text", "text: found empty text"),
        ({"prompt": "q", "chosen": "a"}, "preference", "missing-column", "no 'rejected'"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "preference", "no-preference", "the same answer"),
        ({"chosen": "a", "rejected": "b"}, "preference", "missing-column", "no prompt"),
        (
            {"chosen": Q + GOOD, "rejected": said((U, "x")) + BAD},
            "preference",
            "no-common-prompt",
            "begin with the same prompt",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": 5}, "preference", "wrong-type", "rejected: found int 5"),
        (
            {"prompt": Q + GOOD, "chosen": "a", "rejected": "b"},
            "preference",
            "wrong-role-order",
            "the prompt ends with",
        ),
        (
            {"prompt": "q", "completion": "a", "label": 1},
            "kto",
            "bad-label",
            "label: found int 1, expected true or false",
        ),
        ({"prompt": "q", "completion": "a"}, "kto", "missing-column", "no 'label'"),
        ({"prompt": "q", "label": True}, "kto", "missing-column", "no 'completion'"),
    ],
)
def test_other_formats_reject(row: dict[str, Any], format: str, rule: str, message: str) -> None:
    found = refusal(row, format)
    assert (found.rule, message in str(found)) == (rule, True), found


def test_rows_of_the_guide_have_the_formats_of_their_sections() -> None:
    guide = (Path(__file__).parents[4] / "docs" / "data.md").read_text()
    rows = re.findall(r"^\*\*(\w+)\*\*|^```json\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    format, seen = "", set()
    for name, row in rows:
        format = name or format
        if row:
            parse(json.loads(row), format)
            seen.add(format)
    assert seen == set(get_args(Format))


NAMES = """role content from value user assistant human gpt tool function_call observation system messages conversations
    chosen rejected prompt completion label kto_tag tools instruction input output history text name arguments function
    tool_calls id true"""
WORDS = st.sampled_from([*NAMES.split(), "", " ", "[", "[{}]", '{"name": "f"}', '[["q", "r"]]'])
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": WORDS,
        "content": WORDS | st.none(),
        "from": WORDS,
        "value": WORDS,
        "tool_calls": st.lists(
            st.fixed_dictionaries({}, optional={"name": WORDS, "arguments": WORDS, "function": WORDS})
        ),
    },
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | MESSAGE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("row", "format", "asked"),
    [
        ({"instruction": "q", "output": "good"}, "alpaca", Q),
        ({"instruction": "q", "system": "s"}, "alpaca", said((S, "s"), (U, "q"))),
        ({"messages": Q + GOOD}, "openai", Q),
        ({"messages": Q}, "openai", Q),
        ({"messages": Q + GOOD + Q, "system": "s"}, "openai", said((S, "s")) + Q + GOOD + Q),
        ({"conversations": shared(("human", "q"), ("gpt", "good"))}, "sharegpt", Q),
        ({"conversations": shared(("human", "q"))}, "sharegpt", Q),
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "preference", Q),
    ],
)
def test_the_prompt_of_a_row(row: dict[str, Any], format: str, asked: list[Any]) -> None:
    assert parse_prompt(row, format) == Prompt(asked)


def test_a_prompt_may_end_with_a_tool_message_and_keeps_its_tools() -> None:
    turns = [*Q, {"role": A, "content": "", "tool_calls": [call("f")]}, {"role": T, "content": "1"}]
    tool = {"type": "function", "function": {"name": "f"}}
    assert parse_prompt({"messages": [*turns, *GOOD], "tools": [tool]}, "openai") == Prompt(turns, [tool])


@pytest.mark.parametrize("messages", [GOOD, said((S, "s")), said((S, "s"), (A, "a")), Q + Q, "q"])
def test_a_row_without_prompt_is_rejected(messages: Any) -> None:
    with pytest.raises(RowError) as error:
        parse_prompt({"messages": messages}, "openai")
    assert error.value.rule in ("no-prompt", "wrong-role-order", "wrong-type")


@settings(max_examples=400)
@given(ANYTHING | st.dictionaries(WORDS, ANYTHING | st.lists(MESSAGE, max_size=4), max_size=6))
def test_any_value_is_a_sample_or_a_row_error(value: Any) -> None:
    for format in ("alpaca", "sharegpt", "openai", "text", "preference", "kto"):
        with suppress(RowError):
            assert parse(value, format)
        if format in FORMATS["ppo"]:
            with suppress(RowError):
                assert parse_prompt(value, format)
