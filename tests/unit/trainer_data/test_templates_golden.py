"""What each template makes of each kind of conversation: text, ids and mask as files, checked against the tokenizer's
own apply_chat_template and against TRL's masks.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.data import TemplateName, TemplateSpec
from finetune_trainer.data.row import Row
from finetune_trainer.data.samples import BadRow, Conversation, Message
from finetune_trainer.data.templates import Template, marks, named
from finetune_trainer.data.tokenize import tokenize_batch
from finetune_trainer.errors import InvalidSpec

from tests.unit.trainer_data.tokenizers import tokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "data"
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
WITH_TOOLS: list[TemplateName] = ["qwen2.5", "qwen3", "glm4"]
CASES = [
    (kind, name)
    for kind in CONVERSATIONS
    for name in named.NAMED
    if (kind != "tools" or name in WITH_TOOLS) and not (kind == "reasoning" and name == "qwen3-nothink")
]


def make(name: TemplateName, **settings: Any) -> Template:
    tokens = tokenizer(named.text(name))
    return Template(tokens, frozenset(named.stop_ids(name, tokens)), TemplateSpec(name=name, **settings))


def rows(template: Template, sample: Conversation, cutoff: int = 0) -> list[Row]:
    made = tokenize_batch([sample], template, cutoff, template.tokenizer)[0]
    assert not isinstance(made, BadRow), made
    return made


def before(sample: Conversation, row: int, of: int) -> tuple[int, ...]:
    """Which messages are trained in a row."""
    turns = [i for i, message in enumerate(sample.messages) if message["role"] == "assistant"]
    return tuple(turns) if of == 1 else (turns[row],)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_golden(kind: str, name: TemplateName, request: pytest.FixtureRequest) -> None:
    template = make(name)
    decode = template.tokenizer.decode
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
def test_a_row_is_the_prompt_of_inference_up_to_each_trained_turn(kind: str, name: TemplateName) -> None:
    template, sample = make(name), CONVERSATIONS[kind]
    made = rows(template, sample)
    folds = kind == "reasoning" and "reasoning_content" not in named.text(name)  # written into the content by us
    for number, row in enumerate(made):
        turns = before(sample, number, len(made))
        assert len(row.trained) == len(turns)
        for (start, end), turn in zip(row.trained, turns, strict=True):
            assert row.input_ids[end - 1] in template.stop_ids
            if not folds:
                prompt = template.tokenizer.apply_chat_template(
                    sample.messages[:turn], tools=sample.tools or None, add_generation_prompt=True
                )["input_ids"]
                assert row.input_ids[:start] == prompt


TRL_HAS: list[TemplateName] = ["llama3", "qwen2.5", "qwen3", "gemma3"]


@pytest.mark.parametrize("name", TRL_HAS)
@pytest.mark.parametrize("kind", ["single", "multi", "system"])
def test_masks_are_those_of_trl_less_what_the_prompt_holds_and_what_follows_the_stop_token(
    kind: str, name: TemplateName
) -> None:
    template, sample = make(name, history="asRendered"), CONVERSATIONS[kind]
    theirs = template.tokenizer.apply_chat_template(
        sample.messages, chat_template=template.marked, return_dict=True, return_assistant_tokens_mask=True
    )
    (row,) = rows(template, sample)
    assert row.input_ids == theirs["input_ids"]
    mine = [int(label != -100) for label in row.labels]
    more = [i for i, (a, b) in enumerate(zip(mine, theirs["assistant_masks"], strict=True)) if a != b]
    assert all(not mine[i] for i in more)
    # TRL's variants hold the line breaks after the stop token, and Qwen2.5's one before the answer.
    assert {template.tokenizer.decode([row.input_ids[i]]) for i in more} <= {"\n"}


def test_saved_templates_render_as_the_marked_ones_do() -> None:
    for name in ("chatml", "mistral", "phi4", "glm4", "deepseek", "alpaca", "default"):
        saved = named.text(name)
        marked, method = marks.find(saved)
        assert method == "generation"
        assert not marks.is_marked(saved)
        for kind in ("single", "multi", "system"):
            texts = {
                tokenizer(text).apply_chat_template(CONVERSATIONS[kind].messages, tokenize=False)
                for text in (saved, marked)
            }
            assert len(texts) == 1


def test_a_template_whose_stop_token_is_in_pieces_is_refused_and_others_are_named() -> None:
    from tests.trainer import tiny

    with pytest.raises(InvalidSpec, match=r"llama3 needs '<\|eot_id\|>'.*Templates that fit it: chatml, qwen2.5"):
        named.stop_ids("llama3", tiny.tokenizer(None))


CALLED: list[Message] = [
    {"role": "user", "content": "How is Rome?"},
    {"role": "assistant", "content": "", "tool_calls": CALL},
]


def of_text(text: str, stop: str, **settings: Any) -> Template:
    tokens = tokenizer(text)
    return Template(tokens, frozenset({tokens.convert_tokens_to_ids(stop)}), TemplateSpec(**settings))


def told(template: Template, messages: list[Message]) -> str:
    """What is trained, as text, or why nothing is."""
    made = tokenize_batch([Conversation(messages)], template, 0, template.tokenizer)[0]
    if isinstance(made, BadRow):
        return str(made)
    return "".join(template.tokenizer.decode(row.input_ids[start:end]) for row in made for start, end in row.trained)


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "glm4"])
def test_a_call_is_trained(name: TemplateName) -> None:
    assert "weather" in told(make(name), CALLED)


def test_arguments_are_json_text_for_a_template_that_joins_them_with_text() -> None:
    deepseek = (marks.trl_folder() / "deepseekv3.jinja").read_text(encoding="utf-8")
    trained = told(of_text(deepseek, "<｜end▁of▁sentence｜>"), CALLED)
    assert 'weather\n```json\n{"city": "Rome"}\n```' in trained


@pytest.mark.parametrize("missing", ["message.content is none", "message.content is not defined"])
def test_a_template_that_writes_calls_only_without_content_is_given_none(missing: str) -> None:
    text = (
        "{% for message in messages %}<|im_start|>{{ message.role + ':' }}"
        "{% if message.role == 'assistant' and " + missing + " %}{{ message.tool_calls[0].function | tojson }}"
        "{% else %}{{ message.content }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    trained = told(of_text(text, "<|im_end|>"), CALLED)
    assert trained == '{"name": "weather", "arguments": {"city": "Rome"}}<|im_end|>'


@pytest.mark.parametrize(("history", "why"), [("split", "leaves out the call"), ("asRendered", "no stop token")])
def test_a_row_whose_call_the_template_cannot_train_is_refused(history: Any, why: str) -> None:
    r1 = make("deepseek-r1", history=history)
    # A call follows no prompt that opens a thought, which would be content; and a lone one has no stop token.
    assert why in told(r1, CALLED)
    # Beside content it is left out.
    spoken: list[Message] = [CALLED[0], {"role": "assistant", "content": "Let me see.", "tool_calls": CALL}]
    assert "leaves out the call of 'weather'" in told(r1, spoken)
    # That no answer but the last is trained makes it no better.
    answered: list[Message] = [
        *spoken,
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
    ]
    assert "leaves out the call" in told(make("deepseek-r1", history=history, mask_history=True), answered)


def test_one_call_of_several_that_is_left_out_is_named() -> None:
    first_only = (
        "{% for message in messages %}<|im_start|>{{ message.content }}"
        "{% if message.tool_calls %}{{ message.tool_calls[0].function | tojson }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    two = [*CALL, {"type": "function", "function": {"name": "time", "arguments": {}}}]
    messages: list[Message] = [CALLED[0], {"role": "assistant", "content": "", "tool_calls": two}]
    assert "message 2: the chat template leaves out the call of 'time'" in told(
        of_text(first_only, "<|im_end|>"), messages
    )
