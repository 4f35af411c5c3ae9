"""What each template makes of pairs, labelled answers and prompts, from the row of a file on: ids and mask as files,
checked against the tokenizer's own apply_chat_template in the way in which TRL tokenizes for its trainers.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.data import TemplateName, TemplateSpec
from finetune_trainer.data import formats
from finetune_trainer.data.row import Row
from finetune_trainer.data.samples import BadRow, Labelled, Preference, Prompt, Sample
from finetune_trainer.data.templates import Template, named
from finetune_trainer.data.tokenize import tokenize_batch

from tests.unit.trainer_data.tokenizers import tokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "data"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "Paris."}]
SAMPLES: dict[str, Sample] = {
    "preference": formats.parse(
        {
            "system": "Be brief.",
            "history": [["What is the capital of France?", "Paris."]],
            "instruction": "And of Italy?",
            "chosen": "Rome, of course.",
            "rejected": "Paris.",
        },
        "preference",
    ),
    "kto": formats.parse({"messages": FRANCE, "label": False}, "kto"),
    "prompt": formats.prompt({"messages": [*FRANCE, {"role": "user", "content": "And of Italy?"}]}, "openai"),
}
CASES = [(kind, name) for kind in SAMPLES for name in named.NAMED]


def make(kind: str, name: TemplateName) -> tuple[Template, list[Row]]:
    tokens = tokenizer(named.text(name))
    template = Template(tokens, frozenset(named.stop_ids(name, tokens)), TemplateSpec(name=name))
    made = tokenize_batch([SAMPLES[kind]], template, 0, tokens)[0]
    assert not isinstance(made, BadRow), made
    return template, made


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_golden(kind: str, name: TemplateName, request: pytest.FixtureRequest) -> None:
    template, rows = make(kind, name)
    made = [
        {
            "text": template.tokenizer.decode(row.input_ids),
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


@pytest.mark.parametrize("name", [name for name in named.NAMED if name not in THINKS])
@pytest.mark.parametrize("kind", ["preference", "kto"])
def test_rows_are_those_of_trl_less_what_follows_the_stop_token(kind: str, name: TemplateName) -> None:
    template, rows = make(kind, name)
    sample: Any = SAMPLES[kind]
    assert isinstance(sample, Preference | Labelled)
    answers = [sample.chosen, sample.rejected] if isinstance(sample, Preference) else [sample.answer]
    prompt = template.tokenizer.apply_chat_template(sample.prompt, add_generation_prompt=True)["input_ids"]
    for row, answer in zip(rows, answers, strict=True):
        whole = template.tokenizer.apply_chat_template([*sample.prompt, *answer])["input_ids"]
        length = len(row.input_ids)
        assert row.input_ids == whole[:length]
        assert row.trained == [(len(prompt), length)]
        assert row.input_ids[: len(prompt)] == prompt
        assert row.input_ids[-1] in template.stop_ids
        # TRL's completions hold what a template writes between turns, too; no model is asked to write it.
        assert not template.tokenizer.decode(whole[length:]).strip("\n")


@pytest.mark.parametrize("name", named.NAMED)
def test_prompts_are_those_of_inference(name: TemplateName) -> None:
    template, (row,) = make("prompt", name)
    sample = SAMPLES["prompt"]
    assert isinstance(sample, Prompt)
    asked = template.tokenizer.apply_chat_template(sample.messages, add_generation_prompt=True)["input_ids"]
    assert row == Row(asked, [])
