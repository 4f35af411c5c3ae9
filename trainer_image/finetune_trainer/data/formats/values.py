"""Single values of a row: taken out, checked, and shown in messages. Used by every format."""

import json
import reprlib
from typing import Any, get_args

from finetune_api.data import Format

from finetune_trainer.data.samples import BadRow

Fields = dict[str, Any]

LOOKS_LIKE = (
    ("conversations", "sharegpt"),
    ("messages", "openai"),
    ("chosen", "preference"),
    ("kto_tag", "kto"),
    ("instruction", "alpaca"),
    ("text", "text"),
)
"""Column -> the format whose rows have it; the first that a row has decides."""


def text(row: Fields, key: str, meaning: str) -> str:
    """Text that must be there."""
    if key not in row:
        raise missing(row, key, meaning)
    value = row[key]
    if not isinstance(value, str):
        raise BadRow("wrong-type", f"{key}: found {shown(value)}, expected {meaning}")
    if not value.strip():
        raise BadRow("empty-text", f"{key}: found empty text, expected {meaning}")
    return value


def optional_text(row: Fields, key: str) -> str:
    """Text that may be missing, null or empty."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise BadRow("wrong-type", f"{key}: found {shown(value)}, expected text or nothing")
    return value or ""


def optional_list(row: Fields, key: str) -> list[Any]:
    """A list that may be missing, null or empty; also as JSON, the only way in which csv can hold one."""
    value = from_json(row.get(key))
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise BadRow("wrong-type", f"{key}: found {shown(value)}, expected a list")
    return value


def from_json(value: Any) -> Any:
    """What text that looks like a JSON list or object stands for; anything else, and broken JSON, as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def missing(row: Fields, key: str, meaning: str) -> BadRow:
    """A column that isn't there, with the format that the row seems to have instead."""
    offered = [(column, name) for column, name in LOOKS_LIKE if column in row and name in get_args(Format)]
    hint = f". It has {offered[0][0]!r}: use format {offered[0][1]}" if offered and offered[0][0] != key else ""
    return BadRow("missing-column", f"no {key!r}; found {_keys(row)}, expected {key}: {meaning}{hint}")


def shown(value: Any) -> str:
    """A value as a user recognises it, short enough for a message."""
    if value is None:
        return "null"
    try:
        # Only the begin of long text: a row may have 64 MiB of it.
        text = repr(value[:41]) if isinstance(value, str) else _short.repr(value)
    except ValueError:  # a number of thousands of digits
        return type(value).__name__
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def either(names: list[str]) -> str:
    """'a', 'b' or 'c'."""
    quoted = [repr(name) for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]


def _keys(row: Fields) -> str:
    return "the keys " + ", ".join(str(key)[:40] for key in list(row)[:8]) if row else "an empty object"


_short = reprlib.Repr()
_short.maxlevel = 3
