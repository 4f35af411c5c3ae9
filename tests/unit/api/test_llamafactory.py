"""docs/llamafactory.md, where people who come from LLaMA-Factory find their arguments: none is missing or made up.

A row has arguments, the fields that they are here (or a dash), and what to know.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from finetune_api.crd import schema

PAGE = Path("docs/llamafactory.md")
ARGUMENTS = Path("tests/golden/llamafactory-0.9.5.txt")
OF_OTHER_VERSIONS = {
    "chunk_size",
    "cpu_infer",
    "evaluation_strategy",
    "fsdp_transformer_layer_cls_to_wrap",
    "group_by_length",
    "ray_run_name",
    "resources_per_worker",
}
"""What earlier and later ones take, or their example files name."""


def cells(column: int) -> set[str]:
    """What stands in backticks in a column of the tables of arguments, which are those of three columns."""
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return {name for row in rows if len(row) == 3 for name in re.findall(r"`([^`]+)`", row[column])}


def test_it_names_every_argument() -> None:
    arguments = {line for line in ARGUMENTS.read_text().splitlines() if not line.startswith("#")}
    assert {"lora_rank", "learning_rate", "num_samples"} < arguments
    named = cells(0)
    assert not sorted(one for one in arguments if not any(fnmatchcase(one, name) for name in named))


def test_it_names_no_argument_that_there_is_not() -> None:
    known = set(ARGUMENTS.read_text().splitlines()) | OF_OTHER_VERSIONS
    named = {name.partition(":")[0] for name in cells(0)} - {"dataset_info.json"}
    assert not sorted(name for name in named if not any(fnmatchcase(one, name) for one in known))


def test_its_fields_exist() -> None:
    named = cells(1)
    assert "dpo.simpoGamma" in named
    assert not sorted(field for field in named if not is_field(field))


def is_field(name: str) -> bool:
    """Whether spec has it; what is inside of a list's entries follows the list's name."""
    node: dict[str, Any] = schema()["properties"]["spec"]
    for part in name.split("."):
        found = node.get("items", node).get("properties", {}).get(part)
        if found is None:
            return False
        node = found
    return True
