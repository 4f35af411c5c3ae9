"""Columns that say the prompt: they must agree, and a column has a single meaning."""

from typing import Any

import pytest
from finetune_api.data import ColumnsSpec
from finetune_trainer.data.formats import Layout, read
from finetune_trainer.data.samples import Conversation, LabelledAnswer, Message, Preference, RowError

from tests.unit.trainer.rows import parse

S: Message = {"role": "system", "content": "s"}
Q1: Message = {"role": "user", "content": "q1"}
A1: Message = {"role": "assistant", "content": "a1"}
Q2: Message = {"role": "user", "content": "q2"}
GOOD: Message = {"role": "assistant", "content": "good"}
BAD: Message = {"role": "assistant", "content": "bad"}


def pair(*turns: Message, **columns: Any) -> dict[str, Any]:
    """A preference whose answers are conversations that begin with ``turns``."""
    return {**columns, "chosen": [*turns, GOOD], "rejected": [*turns, BAD]}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (pair(Q2, prompt=[S, Q1, A1, Q2]), [S, Q1, A1, Q2]),  # the conversations begin at the end of the prompt
        (pair(Q1, A1, Q2, prompt=[S, Q1]), [S, Q1, A1, Q2]),
        (pair(Q1, A1, Q2, prompt=[Q1]), [Q1, A1, Q2]),  # they begin with the prompt
        (pair(S, Q1, prompt="q1"), [S, Q1]),
        (pair(S, Q1, prompt=" q1 "), [S, Q1]),
        (pair(Q1, prompt="q1", system="s"), [S, Q1]),
        (pair(Q1, prompt="q1", messages=[Q1, GOOD]), [Q1]),  # a copy of the better conversation
        (pair(Q1, messages=[S, Q1]), [S, Q1]),
        ({"prompt": "q1", "instruction": "q1", "chosen": "good", "rejected": "bad"}, [Q1]),
        ({"prompt": "q1", "instruction": "", "chosen": "good", "rejected": "bad"}, [Q1]),
        ({"instruction": "q2", "messages": [Q1, A1, Q2], "chosen": "good", "rejected": "bad"}, [Q1, A1, Q2]),
    ],
)
def test_columns_that_agree_are_joined(row: dict[str, Any], prompt: list[Message]) -> None:
    parsed = read(row, Layout("preference"))
    assert parsed.sample == Preference(prompt, [GOOD], [BAD])
    assert parsed.unused == []


@pytest.mark.parametrize(
    "row",
    [
        pair(Q2, prompt=[S, Q1]),
        pair(Q2, prompt="q1"),
        pair(Q1, messages=[Q2]),
        {"prompt": "q1", "instruction": "q2", "chosen": "good", "rejected": "bad"},
        {"instruction": "q1", "messages": [Q2], "chosen": "good", "rejected": "bad"},
        {"prompt": "q1", "instruction": "q2", "completion": "good", "label": True},
        {"prompt": [Q1], "messages": [Q2, GOOD], "label": True},
    ],
)
def test_columns_that_differ_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(RowError, match=r"set columns\.prompt or columns\.messages") as error:
        parse(row, "kto" if "label" in row else "preference")
    assert error.value.rule == "no-common-prompt"


def test_a_column_that_the_job_names_has_the_prompt() -> None:
    row = {"prompt": "q1", "instruction": "q2", "chosen": "good", "rejected": "bad"}
    parsed = read(row, Layout("preference", ColumnsSpec(prompt="instruction")))
    assert parsed.sample == Preference([Q2], [GOOD], [BAD])
    assert parsed.unused == ["prompt"]


def test_the_answer_of_kto_may_also_end_the_messages() -> None:
    row = {"messages": [Q1, GOOD], "completion": "good", "label": False}
    assert parse(row, "kto") == LabelledAnswer([Q1], [GOOD], desirable=False)


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        (ColumnsSpec(prompt="input", response="target"), {"input": "q1", "target": "a1"}, [Q1, A1]),
        (ColumnsSpec(prompt="system"), {"system": "q1", "output": "a1"}, [Q1, A1]),
        (ColumnsSpec(prompt="history", response="tools"), {"history": "q1", "tools": "a1"}, [Q1, A1]),
        (ColumnsSpec(query="output", response="input"), {"instruction": "q", "output": "1", "input": "a1"},
         [{"role": "user", "content": "q\n1"}, A1]),
    ],
)  # fmt: skip
def test_a_column_that_another_field_names_is_not_read_by_default(
    columns: ColumnsSpec, row: dict[str, Any], expected: list[Message]
) -> None:
    parsed = read(row, Layout("alpaca", columns))
    assert parsed.sample == Conversation(expected)
    assert parsed.unused == []


def test_a_required_column_that_another_field_names_is_missing() -> None:
    with pytest.raises(RowError, match=r"columns names 'instruction' for something else. Set columns.prompt too"):
        read({"instruction": "x", "output": "y"}, Layout("alpaca", ColumnsSpec(system="instruction")))
