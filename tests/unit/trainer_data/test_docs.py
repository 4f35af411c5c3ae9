"""The examples of docs/data.md are ones that work: rows parse in the format they stand under, specs are valid."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from finetune_api.data import DatasetSpec, Format
from finetune_trainer.data import formats

from tests.trainer import tiny

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\*\*(\w+)\*\*:((?:(?!^\*\*).)*?)```json\n(.*?)```", PAGE, re.M | re.S)
TOOLS = re.findall(r"^With tools:.*?```json\n(.*?)```", PAGE, re.M | re.S)
SPECS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, _, row in ROWS])
def test_rows_shown_are_rows_of_their_format(name: str, row: str) -> None:
    assert formats.parse(json.loads(row), name)


def test_every_format_of_jobs_and_tools_have_an_example() -> None:
    assert {name for name, _, _ in ROWS} == set(get_args(Format))
    assert formats.parse(json.loads(TOOLS[0]), "openai")


@pytest.mark.parametrize("spec", SPECS)
def test_specs_shown_are_valid(spec: Any) -> None:
    if isinstance(spec, list):
        assert all(DatasetSpec.model_validate(each) for each in spec)
    else:
        assert tiny.job(**spec)
