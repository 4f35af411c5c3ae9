"""The texts of the pages, in one file for each language."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

LANGUAGE = "en"


@cache
def _all(language: str) -> dict[str, str]:
    loaded = yaml.safe_load((Path(__file__).parent / f"{language}.yaml").read_text(encoding="utf-8"))
    return dict(_flat(loaded, ""))


def _flat(section: dict[str, Any], path: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in section.items():
        found += _flat(value, f"{path}{key}.") if isinstance(value, dict) else [(f"{path}{key}", str(value))]
    return found


def below(key: str) -> dict[str, str]:
    """The texts of a section, by the last parts of their keys."""
    head = f"{key}."
    return {name.removeprefix(head): value for name, value in _all(LANGUAGE).items() if name.startswith(head)}


def text(key: str, /, **values: Any) -> str:
    """The text, with its values. Raises KeyError for a text that does not exist."""
    return _all(LANGUAGE)[key].format(**values)
