"""Values of the API as the text of a control, and back. A text that is no such value stays text: the API server names
the field and the type, so that people see their own text with the server's message."""

import math
import re
from typing import Any

from finetune_ui.form.fields import Field

WHOLE = re.compile(r"-?[0-9]{1,30}")
NUMBER = re.compile(r"-?([0-9]{1,30}(\.[0-9]{0,400})?|\.[0-9]{1,400})([eE][-+]?[0-9]{1,4})?")
_IN_LINES = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]+")
_IN_AREAS = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]+")
"""Texts that a browser posts as they are. It cuts or changes control characters."""


def shown(field: Field, value: Any) -> str | None:
    """The text of a control with this value. None if the control cannot show the value so that it comes back."""
    match field.kind:
        case "flag":
            return str(value).lower() if isinstance(value, bool) else None
        case "choice":
            # The entry without a text means unset, also if the schema has an empty choice.
            return str(value) if value != "" and any(_same(value, choice) for choice in field.choices) else None
        case "integer":
            return whole(value)
        case "number":
            return number(value)
        case "quantity" if not isinstance(value, str):
            return whole(value)
        case "text" | "quantity":
            return value if isinstance(value, str) and is_line(value) else None
        case "area":
            return value if isinstance(value, str) and _IN_AREAS.fullmatch(value) else None
        case "lines":
            ok = isinstance(value, list) and value and all(isinstance(each, str) and _entry(each) for each in value)
            return "\n".join(value) if ok else None
    return None


def read(field: Field, text: str) -> Any:
    """The value that a text means. None if the control is not set."""
    match field.kind:
        case "area":
            return text or None
        case "lines":
            return [line for line in text.split("\n") if line] or None
    text = text.strip()
    if not text:
        return None
    match field.kind:
        case "flag":
            return {"true": True, "false": False}.get(text, text)
        case "choice":
            return next((choice for choice in field.choices if str(choice) == text), text)
        case "integer":
            return int(text) if WHOLE.fullmatch(text) else text
        case "number":
            return _number(text)
    return text


def is_line(text: str) -> bool:
    """Whether an input posts a text as it is: it has no line break, and no space around it."""
    return _IN_LINES.fullmatch(text) is not None and text == text.strip()


def whole(value: Any) -> str | None:
    """The text of a whole number; None if the value is none."""
    fits = isinstance(value, int) and not isinstance(value, bool) and -(10**30) < value < 10**30
    return str(value) if fits else None


def number(value: Any) -> str | None:
    """The text of a number; None if the value is none."""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else None
    return whole(value)


def _number(text: str) -> Any:
    if WHOLE.fullmatch(text):
        return int(text)
    if NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def _entry(text: str) -> bool:
    return _IN_LINES.fullmatch(text) is not None


def _same(value: Any, choice: Any) -> bool:
    return type(value) is type(choice) and bool(value == choice)
