"""The API reference in Markdown, generated from the CRD's schema."""

import json
from collections.abc import Iterator

from finetune_api.job import API_VERSION, KIND
from finetune_api.schema import Schema

_HEAD = f"""# API reference: {KIND} ({API_VERSION})

Generated from `crds/finetune_api`; do not edit. `kubectl explain finetunejob.spec` prints the same texts.
"""


def api_reference(schema: Schema) -> str:
    """A table for spec and a table for status, with a row per field; nested fields are named by their path."""
    out = [_HEAD]
    for half in ("spec", "status"):
        node = schema["properties"][half]
        out += [
            f"\n## {half}\n",
            node.get("description", ""),
            "",
            "| field | type | default | meaning |",
            "| --- | --- | --- | --- |",
        ]
        out += list(_rows(half, node))
    return "\n".join(out) + "\n"


def _rows(path: str, node: Schema) -> Iterator[str]:
    required = set(node.get("required", []))
    for name, field in node.get("properties", {}).items():
        here = f"{path}.{name}"
        default = field.get("default")
        shown = (
            "**required**"
            if name in required
            else ""
            if default is None or default == {}
            else f"`{json.dumps(default)}`"
        )
        meaning = field.get("description", "").replace("|", "\\|")
        rules = [rule["message"] for rule in field.get("x-kubernetes-validations", []) if "oldSelf" not in rule["rule"]]
        if rules:
            meaning += " Rules: " + "; ".join(rules) + "."
        yield f"| `{here}` | {_type(field)} | {shown} | {meaning} |"
        inner = field.get("items", field)
        yield from _rows(here + ("[]" if "items" in field else ""), inner)


def _type(field: Schema) -> str:
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "items" in field:
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return "map"
    bounds = ""
    if "minimum" in field or "maximum" in field:
        low = ("> " if field.get("exclusiveMinimum") else "≥ ") + f"{field['minimum']:,}" if "minimum" in field else ""
        high = ("< " if field.get("exclusiveMaximum") else "≤ ") + f"{field['maximum']:,}" if "maximum" in field else ""
        bounds = " (" + ", ".join(part for part in (low, high) if part) + ")"
    return str(field.get("type", "any")) + bounds
