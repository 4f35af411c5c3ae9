"""What a command prints: JSON, YAML, or text for people. In a pipe, text has no colours and no cursor movements."""

import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Any


class Format(StrEnum):
    """Values of --output."""

    JSON = "json"
    YAML = "yaml"
    NAME = "name"


COLOURS = {"green": "32", "red": "31", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1"}
PHASES = {
    "Succeeded": "green",
    "Running": "cyan",
    "Failed": "red",
    "Suspended": "dim",
}


def document(value: Any, form: Format) -> None:
    """Print an object, or a list of objects, for programs."""
    if form is Format.NAME:
        for item in value.get("items", [value]):
            print(f"finetunejob/{item['metadata']['name']}")
    elif form is Format.JSON:
        print(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        print(to_yaml(value), end="")


def to_yaml(value: Any) -> str:
    """YAML as people write it: keys in their order, and no anchors."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, _data: Any) -> bool:
            return True

    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120))


def listing(items: Sequence[Any]) -> dict[str, Any]:
    """A list as kubectl prints it."""
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}


def colourful() -> bool:
    """Whether colours are wanted: on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str) -> str:
    """The text in a colour, if colours are wanted."""
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if colour and colourful() else text


def phase(text: str, width: int = 0) -> str:
    """A phase in its colour."""
    return paint(text.ljust(width), PHASES.get(text, "yellow"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], phase_column: int | None = None) -> None:
    """Columns as kubectl prints them."""
    widths = [max(len(str(row[at])) for row in [header, *rows]) for at in range(len(header))]
    for number, row in enumerate([header, *rows]):
        cells = [str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)]
        if number and phase_column is not None:
            cells[phase_column] = phase(str(row[phase_column]), widths[phase_column])
        print("   ".join(cells).rstrip())


def warn(text: str) -> None:
    """A line beside the output."""
    print(text, file=sys.stderr)
