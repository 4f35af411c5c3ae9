"""The columns of a row: read, checked, and shown in messages. Every format uses it.

`Fields` knows which columns were read, so whatever a format does not read is counted in the report.
"""

import reprlib
from typing import Any, get_args

from finetune_api.data import MEDIA, Format

from finetune_trainer.data import strict_json
from finetune_trainer.data.formats.layout import Layout
from finetune_trainer.data.samples import RowError, ToolSchema

TYPICAL_COLUMNS = (
    ("conversations", "sharegpt"),
    ("messages", "openai"),
    ("chosen", "preference"),
    ("kto_tag", "kto"),
    ("instruction", "alpaca"),
    ("text", "text"),
)
"""Column -> format whose rows have it. The first column that a row has decides."""


class Fields:
    """A raw row, which notes what of it is used."""

    __slots__ = ("layout", "read", "row", "tools", "unused")

    def __init__(self, row: dict[str, Any], layout: Layout) -> None:
        self.row, self.layout = row, layout
        self.tools: list[ToolSchema] = []
        """The row's tools, which decide what its calls mean."""
        self.read: set[str] = set()
        """Columns that were read."""
        self.unused: set[str] = set()
        """Names of keys inside columns that have a value and are not used."""

    def column(self, field: str, *defaults: str) -> str | None:
        """The column of a field of ``columns``: as the job names it, or the first default that the row has. A default
        that the job names for another field is not free; None: no default is free."""
        named: str | None = getattr(self.layout.columns, field)
        if named is not None:
            return named
        free = [name for name in defaults if name not in self.layout.named]
        return next((name for name in free if name in self.row), free[0] if free else None)

    def required(self, field: str, *defaults: str, meaning: str) -> str:
        """As `column`. Raises RowError if the row lacks the column."""
        key = self.column(field, *defaults)
        if key is None:
            name = defaults[-1]
            raise RowError(
                "missing-column",
                f"no column for {meaning}: columns names {name!r} for something else. Set columns.{field} too",
            )
        if key not in self.row:
            raise self.missing(key, meaning)
        return key

    def has(self, key: str | None) -> bool:
        """Whether the row has a value in a column."""
        return key is not None and not is_empty(self.row.get(key))

    def get(self, key: str | None) -> Any:
        """The value of a column, or None."""
        if key is None:
            return None
        self.read.add(key)
        return self.row.get(key)

    def text(self, key: str, meaning: str) -> str:
        """Required text."""
        value = self.get(key)
        if not isinstance(value, str):
            raise RowError("wrong-type", f"{key}: found {shown(value)}, expected {meaning}")
        if not value.strip():
            raise RowError("empty-text", f"{key}: found empty text, expected {meaning}")
        return value

    def optional_text(self, key: str | None) -> str:
        """Text that may be missing, null or empty."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise RowError("wrong-type", f"{key}: found {shown(value)}, expected text or nothing")
        return value or ""

    def optional_list(self, key: str | None) -> list[Any]:
        """A list that may be missing, null or empty. It may be JSON, because csv has no other lists."""
        value = parse_json(self.get(key), key or "")
        if value is None or value == "":
            return []
        if not isinstance(value, list):
            raise RowError("wrong-type", f"{key}: found {shown(value)}, expected a list")
        return value

    def missing(self, key: str, meaning: str) -> RowError:
        """The error of a missing column, with the format or the setting that the row seems to need."""
        return RowError(
            "missing-column", f"no {key!r}; found {keys_of(self.row)}, expected {key}: {meaning}{self._hint(key)}"
        )

    def unused_names(self) -> list[str]:
        """What has a value and is not used: columns, and keys inside columns. Raises RowError for media, which a text
        is incomplete without."""
        names = [name for name, value in self.row.items() if name not in self.read and not is_empty(value)]
        for name in names:
            if name in MEDIA:
                raise media_error(name, self.row[name])
        return [str(name) for name in names] + sorted(self.unused)

    def _hint(self, key: str) -> str:
        row, layout = self.row, self.layout
        if key == (layout.columns.messages or {"openai": "messages", "sharegpt": "conversations"}.get(layout.format)):
            own, other = layout.openai, layout.sharegpt
            if layout.format == "sharegpt":
                own, other = other, own
            for name, value in row.items():
                first = value[0] if isinstance(value, list) and value else None
                if isinstance(first, dict) and own.role in first and own.content in first:
                    return f". {name!r} holds messages: set columns.messages to {name}"
                if isinstance(first, dict) and other.role in first and other.content in first:
                    return f". {name!r} holds messages of format {other.format}: use it"
        if key == "chosen" and "preferred_output" in row:
            names = "preferred_output to chosen, non_preferred_output to rejected, and input.messages to messages"
            return f". It has the keys of OpenAI's preferences: rename {names}"
        if "prompt" in row and "completion" in row and key in ("instruction", "messages"):
            columns = "{prompt: prompt, response: completion}"
            return f". It has 'prompt' and 'completion': use format alpaca with columns {columns}"
        formats = [(column, name) for column, name in TYPICAL_COLUMNS if column in row and name in get_args(Format)]
        return f". It has {formats[0][0]!r}: use format {formats[0][1]}" if formats and formats[0][0] != key else ""


def parse_json(value: Any, place: str) -> Any:
    """The value of text that looks like a JSON list or object. Other values, and invalid JSON, are returned
    unchanged. Raises RowError for JSON with an unclear meaning, see `strict_json`."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return strict_json.loads(value)
        except RowError as error:
            raise RowError(error.rule, f"{place}: {error}") from None
        except (ValueError, RecursionError):
            return value
    return value


def is_empty(value: Any) -> bool:
    """Whether a value counts as missing."""
    return value is None or (not value and isinstance(value, str | list | dict))


def media_error(name: str, value: Any) -> RowError:
    """The error of a row with something else than text."""
    advice = f"remove the row, or {name.rpartition(' ')[2]} if the text is complete without it"
    return RowError("media", f"{name}: found {shown(value)}, but only text is trained: {advice}")


def shown(value: Any) -> str:
    """A value that users recognize, short enough for a message."""
    if value is None:
        return "null"
    try:
        # Only the begin of long text: a row may have 64 MiB.
        text = repr(value[:41]) if isinstance(value, str) else _short.repr(value)
    except ValueError:  # a number with thousands of digits
        return type(value).__name__
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def keys_of(row: dict[Any, Any]) -> str:
    """The first keys of an object, for messages."""
    return "the keys " + ", ".join(str(key)[:40] for key in list(row)[:8]) if row else "an empty object"


_short = reprlib.Repr()
_short.maxlevel = 3
