"""Reads values.yaml: every value with its default and the comment above it.

A comment is text for people. Its last line may say the type, where the default does not:

    # Type: integer from 1 to 10
    # Type: one of debug, info
    # Type: labels               (a name in `types.TYPES`)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path("charts/finetune-operator")
"""Relative to the root of the repository."""

_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):(?: |$)")
_TYPE = "Type: "


class ValuesError(Exception):
    """values.yaml lacks something that the generated files need. The message says what to write."""


@dataclass(frozen=True)
class Value:
    """A value, or a section of values."""

    path: tuple[str, ...]
    default: Any
    text: str
    type: str
    """The words after "Type:", or empty."""

    @property
    def name(self) -> str:
        """As `helm --set` writes it."""
        return ".".join(self.path)

    @property
    def is_section(self) -> bool:
        """A dictionary whose keys are values of the chart, not the user's."""
        return isinstance(self.default, dict) and bool(self.default) and not self.type


def read(file: Path = CHART / "values.yaml") -> list[Value]:
    """Every section and every value, in the order of the file. Raises ValuesError for a value without a comment."""
    content = file.read_text(encoding="utf-8")
    defaults = yaml.safe_load(content)
    values: list[Value] = []
    whole: tuple[str, ...] | None = None
    for path, text, kind in _keys(content):
        if whole is not None and path[: len(whole)] == whole:
            continue  # inside a value whose keys are the user's
        default = defaults
        for key in path:
            default = default[key]
        value = Value(path, default, text, kind)
        whole = None if value.is_section else path
        if not text and not value.is_section:
            raise ValuesError(f"{file}: {value.name} has no comment: write above it what it does")
        values.append(value)
    return values


def _keys(content: str) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """(path, text of the comment, its type) for each key of block style."""
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in content.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip().lstrip("#").strip())
            continue
        if key := _KEY.match(line):
            indent = len(key[1])
            path = [*((depth, name) for depth, name in path if depth < indent), (indent, key[2])]
            kind = next((text.removeprefix(_TYPE) for text in comment if text.startswith(_TYPE)), "")
            text = " ".join(text for text in comment if not text.startswith(_TYPE))
            yield tuple(name for _, name in path), text, kind
        comment = []
