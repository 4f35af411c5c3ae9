"""What is generated from the models: up to date, small enough, complete."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from finetune_api.__main__ import files
from finetune_api.crd import CRD_BYTES, crd, schema
from finetune_api.spec import MUTABLE, FineTuneJobSpec, immutability_rules


@pytest.mark.parametrize("path", files(), ids=str)
def test_committed_files_are_what_the_models_give(path: Any) -> None:
    assert path.read_text() == files()[path], "run `make generate` and commit"


def test_the_crd_fits_into_kubectls_annotation() -> None:
    assert len(yaml.safe_dump(crd()).encode()) < CRD_BYTES


def nodes(node: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = [(path, node)]
    for name, sub in node.get("properties", {}).items():
        found += nodes(sub, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if isinstance(node.get(inner), dict):
            found += nodes(node[inner], f"{path}[]")
    return found


def test_every_field_is_described_and_bounded() -> None:
    """An unbounded string or list would let one object fill the store, and break the cost budget of CEL."""
    for path, node in nodes(schema()["properties"]["spec"], "spec"):
        if not path.endswith("[]"):
            assert node.get("description"), f"{path} has no description"
        if node.get("type") == "array":
            assert "maxItems" in node, f"{path} is an unbounded list"
        if node.get("type") == "string" and "enum" not in node:
            assert "maxLength" in node, f"{path} is an unbounded string"
        if "additionalProperties" in node:
            assert "maxProperties" in node, f"{path} is an unbounded map"


def test_every_field_is_immutable_or_named_as_mutable() -> None:
    rules = " ".join(str(rule["rule"]) for rule in immutability_rules())
    for name, info in FineTuneJobSpec.model_fields.items():
        field = info.alias or name
        assert (field in MUTABLE) != (f"self.{field}" in rules), field
    assert "checkpoints.everySteps" in rules
    assert "checkpoints.keep" not in rules


def test_no_reference_or_null_is_left_in_the_schema() -> None:
    text = yaml.safe_dump(crd())
    assert "$ref" not in text
    assert "'null'" not in text
