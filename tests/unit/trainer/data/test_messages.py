"""Keys and spellings of messages that data sets and APIs use: each is used, refused by name, or named as not used."""

import json
from typing import Any

import pytest
from finetune_api.data import ColumnsSpec, DatasetSpec, TagsSpec
from finetune_trainer.data.formats import Layout, read
from finetune_trainer.data.samples import Conversation, RowError
from pydantic import ValidationError

CALL = {"type": "function", "function": {"name": "rain", "arguments": {"city": "Oslo"}}}
TOOL = {
    "type": "function",
    "function": {"name": "rain", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def openai(answer: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", **answer}], **columns}


def sharegpt(answer: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", **answer}], **columns}


def messages(row: Any, format: str = "openai", tags: TagsSpec | None = None) -> list[Any]:
    sample = read(row, Layout(format, None, tags)).sample
    assert isinstance(sample, Conversation)
    return sample.messages


def unused(row: Any, format: str = "openai", columns: ColumnsSpec | None = None) -> list[str]:
    return read(row, Layout(format, columns)).unused


def refusal(row: Any, format: str = "openai") -> tuple[str, str]:
    with pytest.raises(RowError) as error:
        read(row, Layout(format))
    return error.value.rule, str(error.value)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_several_names(key: str) -> None:
    expected = {"role": "assistant", "content": "A", "reasoning_content": "because"}
    assert messages(openai({"content": "A", key: "because"}))[-1] == expected
    assert messages(sharegpt({"value": "A", key: "because"}), "sharegpt")[-1] == expected
    assert messages(openai({"content": "A", key: "because", "reasoning": "because"}))[-1] == expected
    assert "found different texts" in refusal(openai({"content": "A", "thinking": "x", "reasoning": "y"}))[1]
    assert refusal(openai({"content": "A", key: True}))[0] == "wrong-type"


@pytest.mark.parametrize("key", ["tool_calls", "function_call"])
@pytest.mark.parametrize("text", ["I will look.", None])
def test_calls_have_several_places(key: str, text: str | None) -> None:
    value: Any = {"name": "rain", "arguments": '{"city": "Oslo"}'}
    value = value if key == "function_call" else [value]
    expected = {"role": "assistant", "content": text or "", "tool_calls": [CALL]}
    assert messages(openai({"content": text, key: value}))[-1] == expected
    assert messages(sharegpt({"value": text, key: value}), "sharegpt")[-1] == expected
    both = openai({"content": text, "tool_calls": [CALL], "function_call": {"name": "bus"}})
    assert refusal(both)[0] == "bad-tools"


def test_thoughts_before_a_call_of_sharegpt_are_its_reasoning() -> None:
    turns = [{"from": "human", "value": "Q"}]
    turns += [{"from": "function_call", "value": "<think>\nlook\n</think>\n" + json.dumps(CALL["function"])}]
    expected = {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "look"}
    assert messages({"conversations": turns}, "sharegpt")[-1] == expected


@pytest.mark.parametrize(
    ("call", "word"),
    [
        ({"name": "rain", "parameters": {"city": "Oslo"}}, "rename 'parameters' to 'arguments'"),
        ({"type": "custom", "custom": {"name": "rain", "input": "Oslo"}}, "expected {name, arguments}"),
        ({"function": {"name": "rain", "arguments": '{"city": "a", "city": "b"}'}}, "key 'city' twice"),
    ],
)
def test_a_call_in_another_form_is_refused(call: Any, word: str) -> None:
    rule, message = refusal(openai({"tool_calls": [call]}))
    assert rule in ("bad-tools", "not-json")
    assert word in message


def test_functions_and_their_role_are_older_names_of_tools() -> None:
    row = openai({"function_call": CALL["function"]}, functions=[TOOL["function"]])
    row["messages"] += [
        {"role": "function", "name": "rain", "content": "dry"},
        {"role": "assistant", "content": "No."},
    ]
    sample = read(row, Layout("openai")).sample
    assert isinstance(sample, Conversation)
    assert sample.tools == [TOOL]
    assert sample.messages[2] == {"role": "tool", "content": "dry", "name": "rain"}


def test_developer_is_a_newer_name_of_system() -> None:
    row = openai({"content": "A"})
    row["messages"].insert(0, {"role": "developer", "content": "S"})
    assert messages(row)[0] == {"role": "system", "content": "S"}
    # A name that the job gives to another role keeps that meaning.
    tags = TagsSpec(user="developer")
    row = {"messages": [{"role": "developer", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    assert messages(row, tags=tags)[0]["role"] == "user"


def test_text_parts_are_joined_and_other_parts_are_refused() -> None:
    parts: list[Any] = [{"type": "text", "text": "one"}, {"type": "text", "text": "two", "image_url": None}]
    assert messages(openai({"content": parts}))[-1]["content"] == "one\ntwo"
    image = {"type": "image_url", "image_url": {"url": "a.png"}}
    rule, message = refusal(openai({"content": [*parts, image]}))
    assert (rule, "part 3 is of type 'image_url'" in message) == ("media", True)
    assert refusal(openai({"content": []}))[0] == "empty-text"
    cached = [{**parts[0], "cache_control": {"type": "ephemeral"}}]
    assert unused(openai({"content": cached})) == ["messages[].content[].cache_control"]


@pytest.mark.parametrize("name", ["images", "videos", "audios"])
def test_rows_with_media_are_refused(name: str) -> None:
    assert refusal(openai({"content": "A"}, **{name: ["a.png"]}))[0] == "media"
    rule, message = refusal(openai({"content": "A", name: ["a.png"]}))
    assert (rule, f"message 2: {name}: found list ['a.png'], but only text is trained" in message) == ("media", True)
    assert not unused(openai({"content": "A"}, **{name: []}))
    with pytest.raises(ValidationError, match="only text is trained"):
        DatasetSpec.model_validate({"source": "pvc://a/b", "format": "openai", "columns": {name: "pictures"}})


@pytest.mark.parametrize(
    ("row", "format", "names"),
    [
        (openai({"content": "A"}, id="7", lang="en", empty="", none=None), "openai", ["id", "lang"]),
        (openai({"content": "A", "train": False}), "openai", ["messages[].train"]),
        (openai({"content": "A", "tool_call_id": "c1"}), "openai", ["messages[].tool_call_id"]),
        (openai({"tool_calls": [{**CALL, "id": 7}]}), "openai", ["messages[].tool_calls.id"]),
        (sharegpt({"value": "A", "markdown": "*A*"}), "sharegpt", ["conversations[].markdown"]),
        ({"instruction": "Q", "output": "A", "completion": "B"}, "alpaca", ["completion"]),
        ({"text": "words", "meta": {"url": "x"}}, "text", ["meta"]),
        ({"prompt": "Q", "completion": "A", "output": "B", "label": True}, "kto", ["output"]),
    ],
)  # fmt: skip
def test_what_has_a_value_and_no_use_is_named(row: Any, format: str, names: list[str]) -> None:
    assert unused(row, format) == names


def test_a_system_column_beside_another_system_message_is_not_used() -> None:
    row = openai({"content": "A"}, system="column")
    assert unused(row) == []
    row["messages"].insert(0, {"role": "system", "content": "message"})
    assert unused(row) == ["system"]


def test_names_of_speakers_reach_the_template() -> None:
    row = openai({"content": "A", "name": "Bo"})
    row["messages"][0]["name"] = "Ada"
    assert [message["name"] for message in messages(row)] == ["Ada", "Bo"]


def test_results_of_joined_observations_keep_their_names_or_report_them() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Q"},
            {"from": "function_call", "value": json.dumps([CALL["function"]] * 2)},
            {"from": "observation", "value": "1", "name": "rain"},
            {"from": "observation", "value": "2", "name": "bus"},
            {"from": "gpt", "value": "A"},
        ]
    }
    assert messages(row, "sharegpt")[2] == {"role": "tool", "content": "1\n2", "name": "rain"}
    assert unused(row, "sharegpt") == ["conversations[].name"]


@pytest.mark.parametrize(
    ("row", "format", "words"),
    [
        (
            {"conversations": [{"role": "user", "content": "Q"}]},
            "sharegpt",
            "no 'from'; found the keys role, content: use format openai with columns.messages: conversations",
        ),
        ({"messages": [{"from": "human", "value": "Q"}]}, "openai", "no 'role'; found the keys from, value: use form"),
        ({"messages": [{"speaker": "human", "content": "Q"}]}, "openai", "set tags.role if another key has the role"),
        ({"messages": [{"role": "user", "text": "Q"}]}, "openai", "set tags.content if another key has the text"),
        ({"messages": [{"role": "human", "content": "Q"}]}, "openai", "set tags.user to human"),
        ({"conversations": [{"from": "chatgpt", "value": "Q"}]}, "sharegpt", "set tags.assistant to chatgpt"),
        ({"conversations": [{"from": "developer", "value": "Q"}]}, "sharegpt", "set tags.system to developer"),
        ({"conversations": [{"from": "tool", "value": "Q"}]}, "sharegpt", "set tags.observation to tool"),
        ({"conversations": [{"role": "user", "content": "Q"}]}, "openai", "set columns.messages to conversations"),
        ({"dialogue": [{"from": "human", "value": "Q"}]}, "sharegpt", "set columns.messages to dialogue"),
        ({"dialogue": [{"from": "human", "value": "Q"}]}, "openai", "'dialogue' holds messages of format sharegpt"),
        ({"prompt": "Q", "completion": "A"}, "openai", "use format alpaca with columns {prompt: prompt, resp"),
        ({"input": {}, "preferred_output": []}, "preference", "rename preferred_output to chosen"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_setting_that_fits(row: Any, format: str, words: str) -> None:
    assert words in refusal(row, format)[1]


def test_a_prompt_with_its_completion_is_a_conversation() -> None:
    before = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "Q"}]
    answer = {"role": "assistant", "content": "A"}
    for completion in (answer, [answer]):
        asked = [before[0], {**before[1], "weight": 0}, before[2]]
        assert messages({"prompt": before, "completion": completion}) == [*asked, answer]


NULLS: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "rain",
        "strict": None,
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": None, "default": None},
                "stop": None,
                "day": {"type": ["string", "null"], "enum": ["today", None], "const": None},
            },
        },
    },
}


def test_nulls_that_pad_tools_are_dropped() -> None:
    sample = read(openai({"content": "A"}, tools=[NULLS]), Layout("openai")).sample
    assert isinstance(sample, Conversation)
    assert sample.tools[0]["function"] == {
        "name": "rain",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "day": {"type": ["string", "null"], "enum": ["today", None], "const": None},
            },
        },
    }


@pytest.mark.parametrize("written", [dict, json.dumps])
def test_of_the_arguments_only_declared_nulls_are_kept(written: Any) -> None:
    given = {"city": "Oslo", "day": None, "stop": None, "more": {"x": None}}
    call = {"name": "rain", "arguments": written(given)}
    row = openai({"content": None, "tool_calls": [call]}, tools=[NULLS])
    assert messages(row)[-1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo", "day": None, "more": {}}
    # Without its tool, nobody knows what a call declares.
    assert messages(openai({"tool_calls": [call]}))[-1]["tool_calls"][0]["function"]["arguments"] == given
