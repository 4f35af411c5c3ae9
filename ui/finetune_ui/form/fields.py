"""The tree of fields: the schema of the CRD, as the form shows it. `finetune_ui.form.view` and the readers walk it."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from finetune_api.crd import schema

from finetune_ui.form.layout import FREE, MEANINGFUL_EMPTY, metadata
from finetune_ui.texts import below, text

Kind = Literal[
    "text",  # a line
    "area",  # several lines
    "integer",
    "number",
    "quantity",  # a line that is a number with a unit
    "flag",  # true, false or unset
    "choice",
    "choices",  # some of a few words
    "lines",  # a list of texts
    "map",  # rows of key and value
    "rows",  # rows of a section
    "section",
    "yaml",
]
AREA_LENGTH = 2048
"""Texts that may be longer have several lines."""


@dataclass(frozen=True)
class Field:
    """A field of the API, and its control."""

    path: str
    """Path as the schema has it: spec.datasets[].source."""
    name: str
    kind: Kind
    label: str
    help: str
    required: bool = False
    default: Any = None
    choices: tuple[Any, ...] = ()
    bounds: tuple[float | None, float | None] = (None, None)
    may_be_empty: bool = False
    """Whether a check box sets it although it is empty."""
    numbers: bool = False
    """A map: whether its values are whole numbers."""
    parts: tuple["Field", ...] = ()
    """The fields of a section, or of each row."""

    def part(self, name: str) -> "Field | None":
        """A field of the section by its name."""
        return next((part for part in self.parts if part.name == name), None)


@cache
def tree() -> Field:
    """The whole object: metadata and spec."""
    spec = schema()["properties"]["spec"]
    node = {"type": "object", "properties": {"metadata": metadata(), "spec": spec}, "required": ["metadata", "spec"]}
    return _field("", "", node, True)


def _field(path: str, name: str, node: dict[str, Any], required: bool) -> Field:
    kind = _kind(path, node)
    inner = node["items"] if kind == "rows" else node
    below = path + ("[]" if kind == "rows" else "")
    needed = inner.get("required", [])
    parts = (
        _field(f"{below}.{each}".lstrip("."), each, sub, each in needed)
        for each, sub in inner.get("properties", {}).items()
    )
    return Field(
        path=path,
        name=name,
        kind=kind,
        label=_label(name),
        help=" ".join(part for part in (node.get("description", ""), _bounds_in_words(node)) if part),
        required=required,
        default=node.get("default"),
        choices=tuple(node.get("items", node).get("enum", ())),
        bounds=(node.get("minimum"), node.get("maximum")),
        may_be_empty=path in MEANINGFUL_EMPTY,
        numbers=kind == "map" and node["additionalProperties"].get("type") == "integer",
        parts=tuple(parts) if kind in ("rows", "section") else (),
    )


def _kind(path: str, node: dict[str, Any]) -> Kind:
    """Raises ValueError if no control fits, so that a new kind of field fails a test and not a user."""
    if path in FREE:
        return "yaml"
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "enum" in node:
        return "choice"
    match node.get("type"):
        case "string":
            return "area" if node.get("maxLength", 0) > AREA_LENGTH else "text"
        case "integer":
            return "integer"
        case "number":
            return "number"
        case "boolean":
            return "flag"
        case "array" if "properties" in node["items"]:
            return "rows"
        case "array" if node["items"].get("type") == "string":
            return "choices" if "enum" in node["items"] else "lines"
        case "object" if "properties" in node:
            return "section"
        case "object" if node.get("additionalProperties", {}).get("type") in ("string", "integer"):
            return "map"
    raise ValueError(f"{path}: no control of the form fits. Name the field in finetune_ui.form.layout.FREE")


def _label(name: str) -> str:
    """gpusPerNode -> GPUs per node."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)]
    if not words:
        return name
    known = below("form.word")
    found = " ".join(known.get(word, word) for word in words)
    return found if words[0] in known and not found[0].islower() else found[0].upper() + found[1:]


def _bounds_in_words(node: dict[str, Any]) -> str:
    words = []
    if "minimum" in node:
        key = "form.above" if node.get("exclusiveMinimum") else "form.from"
        words.append(text(key, bound=f"{node['minimum']:,}"))
    if "maximum" in node:
        key = "form.below" if node.get("exclusiveMaximum") else "form.to"
        words.append(text(key, bound=f"{node['maximum']:,}"))
    return text("form.allowed", bounds=", ".join(words)) if words else ""


STEP = re.compile(r"\.?([A-Za-z0-9_]+)|\[(\d{1,4})\]")


def nearest(path: str) -> tuple[str, Field] | None:
    """The field that a path of the API server means, or the nearest field around it that has a control or a heading:
    spec.resources.podLabels.app is an entry of spec.resources.podLabels. Returns the path with its row numbers, and the
    field. None if nothing below metadata or spec fits."""
    here, field, at, found = "", tree(), 0, None
    while match := STEP.match(path, at):
        name, row = match.groups()
        if row is not None:
            if field.kind != "rows" or here.endswith("]"):
                break
            here += f"[{row}]"
        else:
            part = field.part(name) if field.kind != "rows" or here.endswith("]") else None
            if part is None:
                break
            here, field = f"{here}.{name}".lstrip("."), part
        if here not in ("metadata", "spec"):
            found = here, field
        at = match.end()
    return found
