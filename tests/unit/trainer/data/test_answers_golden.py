"""Pairs, labelled answers and prompts with each template, from the row of a file: ids and masks as golden files,
checked against the tokenizer's own apply_chat_template as TRL's trainers call it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.data import TemplateName, TemplateSpec
from finetune_trainer.data.row import Row
from finetune_trainer.data.samples import LabelledAnswer, Preference, Prompt, RowError, Sample
from finetune_trainer.data.templates import ChatTemplate, named_templates
from finetune_trainer.data.tokenize import tokenize_batch

from tests.unit.trainer import rows
from tests.unit.trainer.tokenizers import tokenizer, tokenizer_of

GOLDEN = Path(__file__).parents[3] / "golden" / "data"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "Paris."}]
SAMPLES: dict[str, Sample] = {
    "preference": rows.parse(
        {
            "system": "Be brief.",
            "history": [["What is the capital of France?", "Paris."]],
            "instruction": "And of Italy?",
            "chosen": "Rome, of course.",
            "rejected": "Paris.",
        },
        "preference",
    ),
    "kto": rows.parse({"messages": FRANCE, "label": False}, "kto"),
    "prompt": rows.parse_prompt({"messages": [*FRANCE, {"role": "user", "content": "And of Italy?"}]}, "openai"),
}
CASES = [(kind, name) for kind in SAMPLES for name in named_templates.NAMED]


def make(kind: str, name: TemplateName) -> tuple[ChatTemplate, list[Row]]:
    tokens = tokenizer(named_templates.text(name))
    template = ChatTemplate(tokens, frozenset(named_templates.stop_ids(name, tokens)), TemplateSpec(name=name))
    made = tokenize_batch([SAMPLES[kind]], template, 0, tokens)[0]
    assert not isinstance(made, RowError), made
    return template, made


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_golden(kind: str, name: TemplateName, request: pytest.FixtureRequest) -> None:
    template, rows = make(kind, name)
    made = [
        {
            "text": tokenizer_of(template).decode(row.input_ids),
            "ids": row.input_ids,
            "mask": [int(label != -100) for label in row.labels],
            "desirable": row.desirable,
        }
        for row in rows
    ]
    file = GOLDEN / f"{kind}-{name}.json"
    if request.config.getoption("--update-golden"):
        lines = (json.dumps(row, ensure_ascii=False) for row in made)
        file.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    assert made == json.loads(file.read_text(encoding="utf-8"))


THINKS = ("deepseek-r1",)
"""Prompts of these open a thought, which we close in answers that have none: TRL lets the prompt end before it."""


@pytest.mark.parametrize("name", [name for name in named_templates.NAMED if name not in THINKS])
@pytest.mark.parametrize("kind", ["preference", "kto"])
def test_rows_are_those_of_trl_less_what_follows_the_stop_token(kind: str, name: TemplateName) -> None:
    template, rows = make(kind, name)
    sample: Any = SAMPLES[kind]
    assert isinstance(sample, Preference | LabelledAnswer)
    answers = [sample.chosen, sample.rejected] if isinstance(sample, Preference) else [sample.answer]
    prompt = tokenizer_of(template).apply_chat_template(sample.prompt, add_generation_prompt=True)["input_ids"]
    for row, answer in zip(rows, answers, strict=True):
        whole = tokenizer_of(template).apply_chat_template([*sample.prompt, *answer])["input_ids"]
        length = len(row.input_ids)
        assert row.input_ids == whole[:length]
        assert row.trained == [(len(prompt), length)]
        assert row.input_ids[: len(prompt)] == prompt
        assert row.input_ids[-1] in template.stop_ids
        # TRL's completions hold what a template writes between turns, too; no model is asked to write it.
        assert not tokenizer_of(template).decode(whole[length:]).strip("\n")


@pytest.mark.parametrize("name", named_templates.NAMED)
def test_prompts_are_those_of_inference(name: TemplateName) -> None:
    template, (row,) = make("prompt", name)
    sample = SAMPLES["prompt"]
    assert isinstance(sample, Prompt)
    asked = tokenizer_of(template).apply_chat_template(sample.messages, add_generation_prompt=True)["input_ids"]
    assert row == Row(asked, [])
