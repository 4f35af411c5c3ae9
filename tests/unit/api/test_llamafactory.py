"""docs/llamafactory.md lists every argument of LLaMA-Factory, and names only arguments and fields that exist.

A row has arguments, the fields of a FineTuneJob that replace them (or a dash), and a comment.
"""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from finetune_api.crd import schema

PAGE = Path("docs/llamafactory.md")
ARGUMENTS = Path("tests/golden/llamafactory-0.9.5.txt")
DEFAULTS: dict[str, Any] = json.loads(Path("tests/golden/llamafactory-0.9.6.json").read_text())
"""The arguments of version 0.9.6, with their defaults."""
SAME_HERE: dict[str, Any] = {
    "create_new_adapter": "continue",
    "load_best_model_at_end": "last",
    "lora_target": ["all-linear"],
    "mix_strategy": "concatenate",
    "pissa_init": "default",
    "pure_bf16": "auto",
    "use_cpu": 1,
}
"""Arguments whose default means the same here, but has another name."""
OF_OTHER_VERSIONS = {
    "chunk_size",
    "cpu_infer",
    "evaluation_strategy",
    "fsdp_transformer_layer_cls_to_wrap",
    "group_by_length",
    "ray_run_name",
    "resources_per_worker",
}
"""Arguments of earlier and later versions, or of their example files."""
SPEC: dict[str, Any] = schema()["properties"]["spec"]


def rows(page: Path = PAGE) -> list[tuple[list[str], list[str]]]:
    """The arguments and the fields of each row of the tables with three columns."""
    lines = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    return [(re.findall(r"`([^`]+)`", line[0]), re.findall(r"`([^`]+)`", line[1])) for line in lines if len(line) == 3]


def cells(column: int) -> set[str]:
    """The names in backticks in a column of these tables."""
    return {name for row in rows() for name in row[column]}


def test_it_names_every_argument() -> None:
    arguments = {line for line in ARGUMENTS.read_text().splitlines() if not line.startswith("#")} | DEFAULTS.keys()
    assert {"lora_rank", "learning_rate", "num_samples"} < arguments
    named = cells(0)
    assert not sorted(argument for argument in arguments if not any(fnmatchcase(argument, name) for name in named))


def test_it_names_only_arguments_that_exist() -> None:
    known = set(ARGUMENTS.read_text().splitlines()) | DEFAULTS.keys() | OF_OTHER_VERSIONS
    named = {name.partition(":")[0] for name in cells(0)} - {"dataset_info.json"}
    assert not sorted(name for name in named if not any(fnmatchcase(argument, name) for argument in known))


def test_its_fields_exist() -> None:
    named = cells(1)
    assert "dpo.simpoGamma" in named
    assert not sorted(field for field in named if not is_field(field))


def different_defaults() -> dict[str, list[str]]:
    """The arguments of the table of defaults that differ -> default there, field, default here."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {
        name: [line[1].strip("`"), line[2].strip("`"), line[3]]
        for line in lines
        if len(line) == 4 and is_field(line[2].strip("`"))
        for name in re.findall(r"`([^`]+)`", line[0])
    }


def test_each_default_that_differs_is_listed() -> None:
    listed = different_defaults()
    assert "lr_scheduler_type" in listed
    missing = {}
    for names, fields in rows():
        for name, field in zip(names, fields, strict=False):
            there, here = DEFAULTS.get(name), (node(field) or {}).get("default")
            same = SAME_HERE.get(name, there)
            if len(names) == len(fields) == 1 and None not in (there, here) and same != here and here != {}:
                missing[name] = (there, here)
    assert {name: both for name, both in missing.items() if name not in listed} == {}


def test_the_listed_defaults_are_true() -> None:
    for name, (there, field, here) in different_defaults().items():
        real, ours = DEFAULTS.get(name), (node(field) or {}).get("default")
        if name != "warmup_ratio":  # of other versions
            assert there.startswith("none" if real is None else str(real).lower()), name
        assert ours is None or here.replace("`", "").startswith(str(ours)), name


def is_field(name: str) -> bool:
    """Whether spec has the field. Fields of a list's items follow the list's name."""
    return node(name) is not None


def node(name: str) -> dict[str, Any] | None:
    """The schema of a field."""
    found: dict[str, Any] | None = SPEC
    for part in name.split("."):
        found = (found or {}).get("items", found or {}).get("properties", {}).get(part)
    return found
