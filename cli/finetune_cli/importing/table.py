"""The table of LLaMA-Factory's arguments (llamafactory.yaml), for `finetune import` and docs/llamafactory.md.

`python -m finetune_cli.importing.table [--check]` writes, or compares, the blocks of the page.
"""

import re
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path("docs/llamafactory.md")
DATA = Path(__file__).with_name("llamafactory.yaml")
TEMPLATES, DEFAULTS = "Templates", "Defaults that differ"
NOT_NEEDED = "Arguments that are not needed"
DASH = "–"


class Row(NamedTuple):
    """What is known about an argument."""

    fields: tuple[str, ...]
    """Fields below spec. Empty: no field means it."""
    note: str
    lost: bool
    """Whether something is lost if no field means it."""


@cache
def sections() -> dict[str, Any]:
    """The data: title -> header and rows."""
    import yaml

    loaded: dict[str, Any] = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return loaded


@cache
def _rows(of_data_sets: bool) -> tuple[tuple[str, Row], ...]:
    found = []
    for title, section in sections().items():
        if title in (TEMPLATES, DEFAULTS, "nothing lost"):
            continue
        for argument, here, note in section["rows"]:
            if ("dataset_info.json" in argument) == of_data_sets:
                for name in names_in(argument):
                    lost = title != NOT_NEEDED and name not in sections()["nothing lost"]
                    found.append((name, Row(tuple(names_in(here)), note, lost)))
    return tuple(found)


def row(argument: str, of_data_set: bool = False) -> Row | None:
    """The row of an argument, or of a key of dataset_info.json."""
    exact = [each for name, each in _rows(of_data_set) if name == argument]
    fitting = [each for name, each in _rows(of_data_set) if "*" in name and fnmatchcase(argument, name)]
    return next(iter(exact + fitting), None)


class Template(NamedTuple):
    """What stands for a template of LLaMA-Factory."""

    settings: dict[str, str]
    """Fields of spec.template. Empty: the model's own template."""
    same: str
    """How much of the text is equal."""
    note: str
    missing: bool
    own_system: bool
    """Whether the template there has a system message of its own, which template.defaultSystem must repeat."""


def template(name: str, thinking: bool = True) -> Template | None:
    """The row of a template. None if the table does not know it."""
    known = None
    for argument, here, same, note in sections()[TEMPLATES]["rows"]:
        without_thoughts = "`enable_thinking: false`" in argument
        if name in names_in(argument) and (not thinking or not without_thoughts):
            settings: dict[str, str] = {}
            for part in names_in(here):
                key, _, value = part.partition(": ")
                if value:
                    settings[key] = value
                elif part != "defaultSystem":
                    settings["name"] = part
            found = Template(settings, same, note, here == DASH, "`defaultSystem`" in here)
            if without_thoughts or known is None:
                known = found
    return known


def names_in(cell: str) -> list[str]:
    """The words in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def plain(note: str) -> str:
    """A note without Markdown."""
    return re.sub(r"\[([^]]+)]\([^)]*\)", r"\1", note).replace("`", "")


def page(text: str) -> str:
    """The page with its tables made from the data."""
    tables = {}
    for title, section in sections().items():
        if title != "nothing lost":
            lines = [section["header"], ["---"] * len(section["header"]), *section["rows"]]
            tables[title] = "\n".join("| " + " | ".join(cell or "" for cell in line).rstrip() + " |" for line in lines)
    return with_blocks(text, tables, "from the data of `finetune import`")


def with_blocks(text: str, blocks: Mapping[str, str], made: str) -> str:
    """A page with its blocks made again. Comments mark where each begins and ends, and say how it is ``made``."""
    for title, block in blocks.items():
        begin, end = f"<!-- {title}: made {made} -->\n\n", f"\n\n<!-- end of {title} -->"
        before, found, rest = text.partition(begin)
        if not found:
            raise SystemExit(f"the page has no place for the block {title}")
        text = before + begin + block + end + rest.partition(end)[2]
    return text


def write_or_compare(path: Path, data: Path, make: Callable[[str], str]) -> int:
    """Write a page that is made from data, or with --check compare it. Returns the exit code."""
    old = path.read_text(encoding="utf-8")
    new = make(old)
    if "--check" in sys.argv[1:]:
        if old != new:
            print(f"{path} differs from {data.name}: run `make generate` and commit the page", file=sys.stderr)
        return int(old != new)
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(write_or_compare(PAGE, DATA, page))
