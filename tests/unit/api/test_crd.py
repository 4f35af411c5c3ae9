"""The CRD and the other generated files: up to date, small enough, described, bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.__main__ import files
from finetune_api.crd import CRD_BYTES, crd, schema

EXPLAIN_CHARACTERS = 160
SCHEMA = schema()["properties"]
FILES = files()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_committed_files_are_up_to_date(path: Any) -> None:
    assert path.read_text() == FILES[path], "run `make generate` and commit the file"


def test_the_crd_fits_into_the_annotation_of_kubectl() -> None:
    assert Path("crds/finetunejobs.yaml").stat().st_size <= CRD_BYTES < 262_144


def fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and schema of every field, and of the items of every list and map."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from fields(child, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if isinstance(node.get(inner), dict):
            yield from fields(node[inner], f"{path}[]")


FIELDS = [*fields(SCHEMA["spec"], "spec"), *fields(SCHEMA["status"], "status")]


def test_every_field_has_a_short_description() -> None:
    for path, node in FIELDS:
        description = node.get("description", "")
        assert description or path.endswith("[]"), f"{path} has no description"
        assert len(description) <= EXPLAIN_CHARACTERS, f"{path}: {len(description)} characters: {description}"
        assert not description or description.endswith("."), f"{path}: {description}"


def test_a_status_field_has_a_description_of_a_single_sentence() -> None:
    for path, node in FIELDS:
        if path.startswith("status"):
            assert ". " not in node.get("description", ""), f"{path}: {node['description']}"


def test_every_field_of_spec_is_bounded() -> None:
    """An unbounded string or list lets a single object fill the store, and exceeds the cost budget of CEL."""
    for path, node in FIELDS:
        if not path.startswith("spec"):
            continue
        if node.get("type") == "array":
            assert "maxItems" in node, f"{path} is an unbounded list"
        if node.get("type") == "string" and "enum" not in node:
            assert "maxLength" in node, f"{path} is an unbounded string"
        if "additionalProperties" in node:
            assert "maxProperties" in node, f"{path} is an unbounded map"


def defaults(node: dict[str, Any], path: str, inside: bool = False) -> Iterator[str]:
    """Fields with a default, below the items of a list or a map."""
    if inside and "default" in node:
        yield path
    for name, child in node.get("properties", {}).items():
        yield from defaults(child, f"{path}.{name}", inside)
    for inner in ("items", "additionalProperties"):
        if isinstance(node.get(inner), dict):
            yield from defaults(node[inner], f"{path}[]", True)


def test_nothing_inside_a_list_has_a_default() -> None:
    """Tools compare a list as a whole with what the user wrote: a default in it is a difference that never ends."""
    assert list(defaults(SCHEMA["spec"], "spec")) == []
    listed = {"items": {"properties": {"a": {"default": 1}, "b": {"properties": {"c": {"default": {}}}}}}}
    assert list(defaults(listed, "spec")) == ["spec[].a", "spec[].b.c"]


def test_no_reference_or_null_is_left_in_the_schema() -> None:
    text = yaml.safe_dump(crd())
    assert "$ref" not in text
    assert "'null'" not in text
