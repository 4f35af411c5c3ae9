"""Templates llama3 and mistral write tools, calls and results as their makers do, and a refusal names the templates
that have a place for tools.
"""

from typing import Any

import pytest
from finetune_api.data import TemplateName, TemplateSpec
from finetune_trainer.data.row import Row
from finetune_trainer.data.samples import Conversation, Message, RowError, ToolSchema
from finetune_trainer.data.templates import ChatTemplate, named_templates, training_templates
from finetune_trainer.data.tokenize import tokenize_batch

from tests.unit.trainer.tokenizers import tokenizer, tokenizer_of

TOOLS: list[ToolSchema] = [
    {
        "type": "function",
        "function": {"name": name, "description": name, "parameters": {"type": "object", "properties": {}}},
    }
    for name in ("weather", "time")
]


def call(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": {"city": "Rome"}}, **more}


def calling(*calls: dict[str, Any], content: str = "", result: dict[str, Any] | None = None) -> list[Message]:
    answer: dict[str, Any] = {"role": "tool", "content": "sunny", **(result or {})}
    messages: list[Any] = [
        {"role": "user", "content": "How is Rome?"},
        {"role": "assistant", "content": content, "tool_calls": list(calls)},
        answer,
        {"role": "assistant", "content": "Sunny."},
    ]
    return messages


def make(name: TemplateName, **settings: Any) -> ChatTemplate:
    tokens = tokenizer(named_templates.text(name))
    return ChatTemplate(tokens, frozenset(named_templates.stop_ids(name, tokens)), TemplateSpec(name=name, **settings))


def made(template: ChatTemplate, messages: list[Message], tools: list[ToolSchema] | None = None) -> list[Row]:
    rows = tokenize_batch([Conversation(messages, tools or [])], template, 0, template.tokenizer)[0]
    assert not isinstance(rows, RowError), rows
    return rows


def refusal(template: ChatTemplate, messages: list[Message], tools: list[ToolSchema]) -> RowError:
    rows = tokenize_batch([Conversation(messages, tools)], template, 0, template.tokenizer)[0]
    assert isinstance(rows, RowError)
    return rows


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_llama3_writes_tools_as_the_template_that_comes_with_llama_3_1(system: str) -> None:
    messages = calling(call("weather"))
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    published = (training_templates.trl_folder() / "llama3_1.jinja").read_text(encoding="utf-8")
    texts = [
        tokenizer(text).apply_chat_template(messages, tools=TOOLS, tokenize=False, add_generation_prompt=True)
        for text in (published, named_templates.text("llama3"))
    ]
    assert texts[0] == texts[1]


def test_several_calls_at_once_are_trained() -> None:
    llama, mistral = make("llama3"), make("mistral")
    messages = calling(call("weather"), call("time"))
    wanted = '{"name": "weather", "parameters": {"city": "Rome"}}, {"name": "time", "parameters": {"city": "Rome"}}'
    (row,) = made(llama, messages, TOOLS)
    start, end = row.trained[0]
    assert tokenizer_of(llama).decode(row.input_ids[start:end]) == f"[{wanted}]<|eot_id|>"
    (row,) = made(mistral, messages, TOOLS)
    start, end = row.trained[0]
    wanted = wanted.replace("parameters", "arguments")
    assert tokenizer_of(mistral).decode(row.input_ids[start:end]) == f"[TOOL_CALLS] [{wanted}]</s>"


def test_mistral_names_the_call_that_a_result_answers() -> None:
    mistral = make("mistral")
    messages = calling(call("weather", id="abcdefghi"), result={"tool_call_id": "abcdefghi"})
    text = tokenizer_of(mistral).decode(made(mistral, messages, TOOLS)[0].input_ids)
    assert '"arguments": {"city": "Rome"}, "id": "abcdefghi"}]</s>' in text
    assert '[TOOL_RESULTS] {"content": sunny, "call_id": "abcdefghi"}[/TOOL_RESULTS] Sunny.</s>' in text


def test_mistral_shows_tools_before_the_last_question_in_each_row() -> None:
    mistral = make("mistral")
    first: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    texts = [tokenizer_of(mistral).decode(row.input_ids) for row in made(mistral, first + calling(call("time")), TOOLS)]
    assert [text.count("[AVAILABLE_TOOLS]") for text in texts] == [1] * len(texts)
    assert texts[0].startswith("<s>[AVAILABLE_TOOLS]")
    assert "Hi.</s>[AVAILABLE_TOOLS]" in texts[-1]


@pytest.mark.parametrize("name", ["llama3", "mistral"])
def test_text_beside_a_call_is_refused_and_not_dropped(name: TemplateName) -> None:
    error = refusal(make(name), calling(call("weather"), content="Let me see."), TOOLS)
    assert f"template {name} has no place for text beside tool calls" in str(error)


WITHOUT_TOOLS = [name for name in named_templates.NAMED if not named_templates.has_tools(named_templates.text(name))]


@pytest.mark.parametrize("name", WITHOUT_TOOLS)
@pytest.mark.parametrize("tools", [TOOLS, []], ids=["tools", "calls"])
def test_a_refusal_names_the_templates_that_have_a_place_for_tools(name: TemplateName, tools: list[ToolSchema]) -> None:
    error = refusal(make(name), calling(call("weather")), tools)
    assert error.rule == "tools"
    assert "(llama3, qwen2.5, qwen3, qwen3-nothink, mistral, glm4)" in str(error)


def test_of_the_templates_with_tools_only_those_that_fit_the_tokenizer_are_named() -> None:
    from tests.trainer.support import tiny

    assert named_templates.names_with_tools(tiny.tokenizer(None)) == "qwen2.5, qwen3, qwen3-nothink, mistral"
