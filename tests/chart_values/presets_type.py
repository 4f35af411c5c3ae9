"""The format of presets, from the models with which the operator reads them."""

from __future__ import annotations

from typing import Any

from finetune_api.presets import Presets


def schema() -> dict[str, Any]:
    """Their JSON schema in one piece."""
    whole = Presets.model_json_schema(by_alias=True)
    definitions = whole.pop("$defs")

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return inline(definitions[node["$ref"].rpartition("/")[2]])
        return {key: inline(value) for key, value in node.items() if key not in ("title", "default")}

    made: dict[str, Any] = inline(whole)
    return made
