"""The table of templates in docs/llamafactory.md is true for every template name of LLaMA-Factory.

The samples in tests/golden are conversations that LLaMA-Factory's templates have rendered. A sample is a list of turns,
each with what the model sees and what it learns. ``ids`` are those of tests/unit/trainer/tokenizers.py.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from finetune_api.data import TagsSpec, TemplateName, TemplateSpec
from finetune_trainer.data.row import Row
from finetune_trainer.data.samples import Conversation, RowError
from finetune_trainer.data.templates import ChatTemplate, named_templates, training_templates
from finetune_trainer.data.tokenize import tokenize_batch
from finetune_trainer.errors import InvalidSpec

from tests.unit.trainer import rows
from tests.unit.trainer.tokenizers import tokenizer, tokenizer_of

PAGE = Path("docs/llamafactory.md")
GOLDEN: dict[str, Any] = json.loads(Path("tests/golden/llamafactory-templates.json").read_text(encoding="utf-8"))
OWN_TEMPLATES = {"Qwen3 Instruct 2507": "qwen3_instruct_2507", "Command R": "cohere"}
"""Models in the table -> TRL's copy of their own template."""


class Line(NamedTuple):
    """A line of the table for one name."""

    name: str
    thinking: bool
    here: str
    text: str


def lines() -> list[Line]:
    page = PAGE.read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return [
        Line(name, "enable_thinking: false" not in row[0], row[1], row[2])
        for row in rows
        if len(row) >= 3 and row[2] in ("the same", "the same without tools", "other", "missing")
        for name in re.findall(r"`([^`:]+)`", row[0])
    ]


def sample(line: Line) -> dict[str, Any]:
    found = [
        s for s in GOLDEN["samples"] if line.name in s["names"] and s.get("enable_thinking", True) is line.thinking
    ]
    assert len(found) == 1, line
    return dict(found[0])


def conversation(kind: str) -> Conversation:
    """The conversation as format sharegpt reads it from the data of LLaMA-Factory."""
    source = GOLDEN["conversations"][kind]
    tags = TagsSpec(role="role", content="content", user="user", assistant="assistant", function="function")
    row = {"conversations": source["messages"], "system": source.get("system"), "tools": source.get("tools")}
    read = rows.parse(row, "sharegpt", tags=tags)
    assert isinstance(read, Conversation)
    return read


@cache
def template(here: str, default_system: str | None, eos: str) -> ChatTemplate:
    """What the second column says."""
    settings: dict[str, Any] = {"history": "asRendered"} if "`history: asRendered`" in here else {}
    if "`defaultSystem`" in here:
        settings["default_system"] = default_system
    model = next((file for model, file in OWN_TEMPLATES.items() if here.endswith(model)), None)
    if model:
        tokens = tokenizer((training_templates.trl_folder() / f"{model}.jinja").read_text(encoding="utf-8"), eos=eos)
        return ChatTemplate(tokens, frozenset({tokens.eos_token_id}), TemplateSpec(**settings))
    name: Any = re.findall(r"`([^`]+)`", here)[0]
    tokens = tokenizer(named_templates.text(name), eos=eos)
    return ChatTemplate(tokens, frozenset(named_templates.stop_ids(name, tokens)), TemplateSpec(name=name, **settings))


def made(by: ChatTemplate, kind: str) -> list[Row] | RowError:
    return tokenize_batch([conversation(kind)], by, 0, by.tokenizer)[0]


def is_same(by: ChatTemplate, kind: str, turns: list[list[str]]) -> bool:
    """Whether the row has the text that LLaMA-Factory renders, and trains the same parts of it. A line break after an
    answer is trained there and not here."""
    rows = made(by, kind)
    if isinstance(rows, RowError) or len(rows) != 1:
        return False
    decode = tokenizer_of(by).decode
    trained = [decode(rows[0].input_ids[start:end]) for start, end in rows[0].trained]
    text = "".join(prompt + answer for prompt, answer in turns)
    return decode(rows[0].input_ids).rstrip("\n") == text.rstrip("\n") and trained == [a.rstrip("\n") for _, a in turns]


LINES = lines()
IDS = [line.name + ("" if line.thinking else "-no-thinking") for line in LINES]


def test_the_table_has_each_name_once() -> None:
    names = [line.name for line in LINES if line.thinking]
    assert len(names) == len(set(names)) == 124
    assert set(names) == {name for s in GOLDEN["samples"] for name in s["names"]}
    without = [line.name for line in LINES if not line.thinking]
    reasoning = {name for s in GOLDEN["samples"] if s.get("enable_thinking") is False for name in s["names"]}
    same = {line.name for line in LINES if line.text.startswith("the same")}
    assert sorted(without) == sorted(reasoning & same)


@pytest.mark.parametrize("line", LINES, ids=IDS)
def test_the_table_is_true(line: Line) -> None:
    there = sample(line)
    if line.text == "missing":
        assert line.here == "–"
        assert not [name for name in named_templates.NAMED if renders(name, there)]
        return
    by = template(line.here, there.get("default_system"), there["eos"])
    same = [kind for kind in ("plain", "system", "tools") if is_same(by, kind, there[kind])]
    if line.text == "the same":
        assert same == ["plain", "system", "tools"]
        rows = made(by, "tools")
        assert not isinstance(rows, RowError)
        assert [row.input_ids for row in rows] == [there["ids"]]
    elif line.text == "the same without tools":
        assert same == ["plain", "system"]
    else:
        assert set(same) < {"plain", "system"}


def renders(name: TemplateName, there: dict[str, Any]) -> bool:
    """Whether a template of ours writes the conversation with a system message as LLaMA-Factory does."""
    try:
        return is_same(template(f"`{name}`", None, there["eos"]), "system", there["system"])
    except InvalidSpec:
        return False
