"""The examples in docs/data.md work: rows parse in the format of their heading, and specs are valid."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from finetune_api.data import DatasetSpec, Format

from tests.trainer.support import tiny
from tests.unit.trainer import rows

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\*\*(\w+)\*\*:((?:(?!^\*\*).)*?)```json\n(.*?)```", PAGE, re.M | re.S)
TOOLS = re.findall(r"^With tools:.*?```json\n(.*?)```", PAGE, re.M | re.S)
SPECS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, _, row in ROWS])
def test_each_row_has_the_format_of_its_heading(name: str, row: str) -> None:
    assert rows.parse(json.loads(row), name)


def test_every_format_has_an_example_and_tools_too() -> None:
    assert {name for name, _, _ in ROWS} == set(get_args(Format))
    assert rows.parse(json.loads(TOOLS[0]), "openai")


@pytest.mark.parametrize("spec", SPECS)
def test_the_specs_are_valid(spec: Any) -> None:
    if isinstance(spec, list):
        assert all(DatasetSpec.model_validate(each) for each in spec)
    else:
        assert tiny.job(**spec)
