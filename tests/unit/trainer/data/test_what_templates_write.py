"""Text that is checked again as tokens, templates for tools, and what a template does not write."""

from collections import Counter
from typing import Any

import pytest
from finetune_api.data import TemplateSpec
from finetune_trainer.data.row import Row
from finetune_trainer.data.samples import Conversation, LabelledAnswer, Message, Preference, Prompt, RowError, Sample
from finetune_trainer.data.templates import ChatTemplate, named_templates
from finetune_trainer.data.templates.left_out import SUFFIX
from finetune_trainer.data.tokenize import tokenize_batch
from finetune_trainer.errors import InvalidSpec

from tests.trainer.support import tiny
from tests.unit.trainer.tokenizers import tokenizer, tokenizer_of

Q: Message = {"role": "user", "content": "say alpha"}
A: Message = {"role": "assistant", "content": "alpha"}
CALL = {"id": "c1", "type": "function", "function": {"name": "rain", "arguments": {"city": 'the "old" town'}}}
CALLS: list[Message] = [
    Q,
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "look first"},
    {"role": "tool", "content": "dry", "tool_call_id": "c1", "name": "rain"},
    A,
]
TOOLS = [{"type": "function", "function": {"name": "rain", "description": "It says\nrain"}}]
TRIMS = tiny.CHATML.replace("message.content", "message.content | trim")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.CHATML
WITHOUT_SYSTEM = tiny.CHATML.replace("for message in messages", "for message in messages if message.role != 'system'")
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def template(text: Any = tiny.CHATML, **settings: Any) -> ChatTemplate:
    made = tiny.tokenizer(text)
    return ChatTemplate(made, frozenset({made.eos_token_id}), TemplateSpec(**settings))


def qwen3() -> ChatTemplate:
    made = tokenizer(named_templates.text("qwen3"))
    return ChatTemplate(made, frozenset(named_templates.stop_ids("qwen3", made)), TemplateSpec(name="qwen3"))


def make(sample: Sample, by: ChatTemplate, cutoff: int = 0) -> tuple[list[Row] | RowError, set[str]]:
    """The rows, and the names of what the template left out."""
    counts: Counter[str] = Counter()
    made = tokenize_batch([sample], by, cutoff, by.tokenizer, counts)[0]
    assert set(counts.values()) <= {1}
    return made, {name.removesuffix(SUFFIX) for name in counts}


def text_of(made: list[Row] | RowError, by: ChatTemplate) -> str:
    assert not isinstance(made, RowError), made
    return "\n".join(tokenizer_of(by).decode(row.input_ids) for row in made)


def answer(content: str) -> list[Message]:
    return [{"role": "assistant", "content": content}]


def test_answers_that_the_template_makes_alike_are_a_broken_row() -> None:
    pair = Preference([Q], answer("alpha beta"), answer("alpha beta "))
    assert isinstance(make(pair, template())[0], list)
    for cutoff in (0, 10):
        made, _ = make(pair, template(TRIMS), cutoff)
        assert isinstance(made, RowError)
        assert made.rule == "no-preference"


def test_answers_that_the_cut_makes_alike_are_two_equal_rows() -> None:
    pair = Preference([Q], answer("alpha " * 20 + "beta"), answer("alpha " * 20 + "gamma"))
    whole, _ = make(pair, template())
    assert isinstance(whole, list)
    cut, _ = make(pair, template(), len(whole[0].input_ids) - 4)
    assert isinstance(cut, list)
    assert cut[0] == cut[1]
    assert cut[0].cut > 0
    assert whole[0] != whole[1]


def test_an_answer_without_tokens_is_a_broken_row() -> None:
    drops = tiny.CHATML.replace("message.content", "message.content | replace('alpha', '')")
    made, _ = make(Conversation([Q, A]), template(drops))
    assert isinstance(made, RowError)
    assert (made.rule, str(made)) == ("empty-text", "message 2: the answer has no tokens, expected text")


NAMED = {"default": tiny.CHATML, "tool_use": WITH_TOOLS}


def test_rows_with_tools_use_the_template_for_tools() -> None:
    named, plain, tools = template(NAMED), template(tiny.CHATML), template(WITH_TOOLS)
    without: list[Sample] = [Conversation([Q, A]), Preference([Q], [A], answer("beta")), Prompt([Q])]
    for sample in without:
        assert make(sample, named) == make(sample, plain)
    pair, labelled = Preference([Q], [A], answer("beta"), TOOLS), LabelledAnswer([Q], [A], True, TOOLS)
    for sample in (Conversation(CALLS, TOOLS), pair, labelled, Prompt([Q], TOOLS)):
        assert isinstance(make(sample, named)[0], list)
        assert make(sample, named) == make(sample, tools)
    assert named.render_prompt([Q], TOOLS) == tools.render_prompt([Q], TOOLS)
    assert named.render_prompt([Q]) == plain.render_prompt([Q])


def test_both_templates_are_in_the_facts() -> None:
    facts, tools = template(NAMED).facts(), template(WITH_TOOLS).facts()
    assert facts["digest"] == template().facts()["digest"]
    assert facts["withTools"]["digest"] == tools["digest"]
    assert facts != template({**NAMED, "tool_use": WITH_TOOLS + " "}).facts()
    assert "withTools" not in tools


def test_templates_without_a_default_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="has the chat templates rag, tool_use, and none is named default"):
        template({"tool_use": WITH_TOOLS, "rag": tiny.CHATML})


@pytest.mark.parametrize("refuses", [NO_SYSTEM, WITHOUT_SYSTEM, {"default": tiny.CHATML, "tool_use": NO_SYSTEM}])
def test_a_default_system_message_that_the_template_does_not_write_is_refused_by_its_name(refuses: Any) -> None:
    assert isinstance(make(Conversation([Q, A]), template(refuses))[0], list)
    with pytest.raises(InvalidSpec, match=r"^template\.defaultSystem: the chat template (rejects|leaves)"):
        template(refuses, default_system="be kind")


@pytest.mark.parametrize(
    ("made", "tools", "names"),
    [
        (qwen3, TOOLS, {"tool_calls[].id", "tool_call_id"}),
        (lambda: template(WITH_TOOLS), TOOLS, {"tool_calls[].id", "tool_call_id"}),
        (lambda: template(WITHOUT_SYSTEM.replace("!= 'system'", "!= 'user'")), [], {"user messages"}),
    ],
)
def test_what_a_template_leaves_out_is_counted(made: Any, tools: Any, names: set[str]) -> None:
    messages: list[Message] = CALLS if tools else [{"role": "system", "content": "be kind"}, Q, A]
    result, found = make(Conversation(messages, tools), made())
    assert isinstance(result, list)
    assert found == names


def test_thoughts_of_the_last_answer_alone_are_left_out_of_no_row() -> None:
    first: Message = {**A, "reasoning_content": "first thought"}
    last: Message = {**A, "content": "<think>\nsecond thought\n</think>\n\nbeta"}
    made, found = make(Conversation([Q, first, Q, last]), qwen3())
    assert found == set()
    assert "first thought" in text_of(made, qwen3())
    untrained: Message = {**A, "reasoning_content": "first thought", "weight": 0}
    assert make(Conversation([Q, untrained, Q, A]), qwen3())[1] == {"reasoning_content"}


def test_a_system_message_that_the_template_leaves_out_is_counted() -> None:
    messages: list[Message] = [{"role": "system", "content": "be kind"}, Q, A]
    assert make(Conversation(messages), template(WITHOUT_SYSTEM))[1] == {"system messages"}
    assert make(Conversation(messages), template())[1] == set()
