"""Each kind of conversation with each template: text, ids and masks as golden files, checked against the tokenizer's
own apply_chat_template and against TRL's masks.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.data import TemplateName, TemplateSpec
from finetune_trainer.data.row import Row
from finetune_trainer.data.samples import Conversation, Message, RowError
from finetune_trainer.data.templates import ChatTemplate, named_templates, training_templates
from finetune_trainer.data.tokenize import tokenize_batch
from finetune_trainer.errors import InvalidSpec

from tests.unit.trainer.tokenizers import tokenizer, tokenizer_of

GOLDEN = Path(__file__).parents[3] / "golden" / "data"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL: Any = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]
SYSTEM: Message = {"role": "system", "content": "Be brief."}
FRANCE: list[Message] = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
]
ITALY: list[Message] = [
    {"role": "user", "content": "And of Italy?"},
    {"role": "assistant", "content": "Rome, of course."},
]
CONVERSATIONS: dict[str, Conversation] = {
    "single": Conversation(FRANCE),
    "multi": Conversation([*FRANCE, *ITALY]),
    "system": Conversation([SYSTEM, *FRANCE]),
    "reasoning": Conversation(
        [
            FRANCE[0],
            {"role": "assistant", "content": "Paris.", "reasoning_content": "France? Paris."},
            ITALY[0],
            {"role": "assistant", "content": "Rome, of course.", "reasoning_content": "Italy? Rome."},
        ]
    ),
    "tools": Conversation(
        [
            {"role": "user", "content": "How is Rome?"},
            {"role": "assistant", "content": "", "tool_calls": CALL},
            {"role": "tool", "content": "sunny"},
            {"role": "assistant", "content": "Sunny."},
        ],
        [TOOL],
    ),
}
WITH_TOOLS: list[TemplateName] = ["qwen2.5", "qwen3", "glm4", "llama3", "mistral"]
CASES = [
    (kind, name)
    for kind in CONVERSATIONS
    for name in named_templates.NAMED
    if (kind != "tools" or name in WITH_TOOLS) and not (kind == "reasoning" and name == "qwen3-nothink")
]


def make(name: TemplateName, **settings: Any) -> ChatTemplate:
    tokens = tokenizer(named_templates.text(name))
    return ChatTemplate(tokens, frozenset(named_templates.stop_ids(name, tokens)), TemplateSpec(name=name, **settings))


def rows(template: ChatTemplate, sample: Conversation, cutoff: int = 0) -> list[Row]:
    made = tokenize_batch([sample], template, cutoff, template.tokenizer)[0]
    assert not isinstance(made, RowError), made
    return made


def before(sample: Conversation, row: int, of: int) -> tuple[int, ...]:
    """Which messages are trained in a row."""
    turns = [i for i, message in enumerate(sample.messages) if message["role"] == "assistant"]
    return tuple(turns) if of == 1 else (turns[row],)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_golden(kind: str, name: TemplateName, request: pytest.FixtureRequest) -> None:
    template = make(name)
    decode = tokenizer_of(template).decode
    made = [
        {
            "text": decode(row.input_ids),
            "trained": [decode(row.input_ids[start:end]) for start, end in row.trained],
            "ids": row.input_ids,
            "mask": [int(label != -100) for label in row.labels],
        }
        for row in rows(template, CONVERSATIONS[kind])
    ]
    file = GOLDEN / f"{kind}-{name}.json"
    if request.config.getoption("--update-golden"):
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) for row in made)
        file.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    assert made == json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_row_equals_the_prompt_of_inference_up_to_each_trained_turn(kind: str, name: TemplateName) -> None:
    template, sample = make(name), CONVERSATIONS[kind]
    made = rows(template, sample)
    folds = kind == "reasoning" and "reasoning_content" not in named_templates.text(name)  # then it is in the content
    for number, row in enumerate(made):
        turns = before(sample, number, len(made))
        assert len(row.trained) == len(turns)
        for (start, end), turn in zip(row.trained, turns, strict=True):
            assert row.input_ids[end - 1] in template.stop_ids
            if not folds:
                prompt = tokenizer_of(template).apply_chat_template(
                    sample.messages[:turn], tools=sample.tools or None, add_generation_prompt=True
                )["input_ids"]
                assert row.input_ids[:start] == prompt


TRL_HAS: list[TemplateName] = ["llama3", "qwen2.5", "qwen3", "gemma3"]


@pytest.mark.parametrize("name", TRL_HAS)
@pytest.mark.parametrize("kind", ["single", "multi", "system"])
def test_masks_equal_those_of_trl_without_the_prompt_and_what_follows_the_stop_token(
    kind: str, name: TemplateName
) -> None:
    template, sample = make(name, history="asRendered"), CONVERSATIONS[kind]
    theirs = tokenizer_of(template).apply_chat_template(
        sample.messages, chat_template=template.marked, return_dict=True, return_assistant_tokens_mask=True
    )
    (row,) = rows(template, sample)
    assert row.input_ids == theirs["input_ids"]
    mine = [int(label != -100) for label in row.labels]
    more = [i for i, (a, b) in enumerate(zip(mine, theirs["assistant_masks"], strict=True)) if a != b]
    assert all(not mine[i] for i in more)
    # TRL's variants hold the line breaks after the stop token, and Qwen2.5's one before the answer.
    assert {tokenizer_of(template).decode([row.input_ids[i]]) for i in more} <= {"\n"}


def test_saved_templates_render_like_marked_templates() -> None:
    for name in ("chatml", "mistral", "phi4", "glm4", "deepseek", "alpaca", "default"):
        saved = named_templates.text(name)
        marked, method = training_templates.find_variant(saved)
        assert method == "generation"
        assert not training_templates.is_marked(saved)
        for kind in ("single", "multi", "system"):
            texts = {
                tokenizer(text).apply_chat_template(CONVERSATIONS[kind].messages, tokenize=False)
                for text in (saved, marked)
            }
            assert len(texts) == 1


def test_a_template_whose_stop_token_is_split_is_rejected_and_others_are_named() -> None:
    from tests.trainer.support import tiny

    with pytest.raises(
        InvalidSpec, match=r"llama3 needs '<\|eot_id\|>'.*Use a template that fits this tokenizer \(chatml, qwen2.5"
    ):
        named_templates.stop_ids("llama3", tiny.tokenizer(None))


CALLED: list[Message] = [
    {"role": "user", "content": "How is Rome?"},
    {"role": "assistant", "content": "", "tool_calls": CALL},
]


def of_text(text: str, stop: str, **settings: Any) -> ChatTemplate:
    tokens = tokenizer(text)
    return ChatTemplate(tokens, frozenset({tokens.convert_tokens_to_ids(stop)}), TemplateSpec(**settings))


def told(template: ChatTemplate, messages: list[Message]) -> str:
    """What is trained, as text, or why nothing is."""
    made = tokenize_batch([Conversation(messages)], template, 0, template.tokenizer)[0]
    if isinstance(made, RowError):
        return str(made)
    return "".join(
        tokenizer_of(template).decode(row.input_ids[start:end]) for row in made for start, end in row.trained
    )


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "glm4"])
def test_a_call_is_trained(name: TemplateName) -> None:
    assert "weather" in told(make(name), CALLED)


def test_arguments_are_json_for_a_template_that_joins_them_with_text() -> None:
    deepseek = (training_templates.trl_folder() / "deepseekv3.jinja").read_text(encoding="utf-8")
    trained = told(of_text(deepseek, "<｜end▁of▁sentence｜>"), CALLED)
    assert 'weather\n```json\n{"city": "Rome"}\n```' in trained


@pytest.mark.parametrize("missing", ["message.content is none", "message.content is not defined"])
def test_a_template_that_writes_calls_only_without_content_gets_no_content(missing: str) -> None:
    text = (
        "{% for message in messages %}<|im_start|>{{ message.role + ':' }}"
        "{% if message.role == 'assistant' and " + missing + " %}{{ message.tool_calls[0].function | tojson }}"
        "{% else %}{{ message.content }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    trained = told(of_text(text, "<|im_end|>"), CALLED)
    assert trained == '{"name": "weather", "arguments": {"city": "Rome"}}<|im_end|>'


@pytest.mark.parametrize(("history", "why"), [("split", "drops the call"), ("asRendered", "no stop token")])
def test_a_row_whose_call_the_template_cannot_train_is_rejected(history: Any, why: str) -> None:
    r1 = make("deepseek-r1", history=history)
    # The prompt opens reasoning, which is content, so no call can follow it; without content a call has no stop token.
    assert why in told(r1, CALLED)
    # Beside content the call is dropped.
    spoken: list[Message] = [CALLED[0], {"role": "assistant", "content": "Let me see.", "tool_calls": CALL}]
    assert "drops the call of 'weather'" in told(r1, spoken)
    # The same if only the last answer is trained.
    answered: list[Message] = [
        *spoken,
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
    ]
    assert "drops the call" in told(make("deepseek-r1", history=history, mask_history=True), answered)


def test_a_dropped_call_among_several_is_named() -> None:
    first_only = (
        "{% for message in messages %}<|im_start|>{{ message.content }}"
        "{% if message.tool_calls %}{{ message.tool_calls[0].function | tojson }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    two = [*CALL, {"type": "function", "function": {"name": "time", "arguments": {}}}]
    messages: list[Message] = [CALLED[0], {"role": "assistant", "content": "", "tool_calls": two}]
    assert "message 2: the chat template drops the call of 'time'" in told(of_text(first_only, "<|im_end|>"), messages)
