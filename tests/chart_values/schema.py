"""values.schema.json, with which helm checks values before it renders anything."""

from __future__ import annotations

import json
from typing import Any

from tests.chart_values.reader import Value
from tests.chart_values.types import type_of


def schema(values: list[Value]) -> str:
    """The file. Keys that values.yaml does not list are refused at every level.

    Helm removes a value that a user sets to null, so a template would find nothing. Such a value is refused as missing,
    unless its default is empty anyway.
    """
    root = _section("Values of the finetune-operator chart")
    # Helm itself adds it, and a parent chart may fill it.
    root["properties"]["global"] = {"type": "object", "description": "Reserved by Helm; not used here"}
    sections: dict[tuple[str, ...], dict[str, Any]] = {(): root}
    for value in values:
        if value.is_section:
            node = sections[value.path] = _section(value.text)
        else:
            node = {"description": value.text, **type_of(value).schema, "default": value.default}
        parent = sections[value.path[:-1]]
        parent["properties"][value.path[-1]] = node
        if value.is_section or value.default not in ("", [], {}):
            parent["required"].append(value.path[-1])
    for section in sections.values():
        if not section["required"]:
            del section["required"]
    head = {"$schema": "http://json-schema.org/draft-07/schema#"}
    return json.dumps(head | root, indent=2) + "\n"


def _section(text: str) -> dict[str, Any]:
    described = {"description": text} if text else {}
    return {**described, "type": "object", "additionalProperties": False, "required": [], "properties": {}}
