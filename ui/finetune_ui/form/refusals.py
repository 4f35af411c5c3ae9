"""What the API server says about a job, as messages at the fields of the form."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from finetune_ui.form.fields import nearest


class Errors(NamedTuple):
    """Messages about a job."""

    fields: dict[str, str]
    """Path of a control, or of a section -> the message."""
    rest: tuple[str, ...]
    """Messages that belong to no field."""


NO_ERRORS = Errors({}, ())
NO_FIELD = ("<nil>", "", "spec")
LONGEST = 2000
"""Most characters of a message. The server repeats a value in it."""
UNCHECKED = "some validation rules were not checked because the object was invalid"
"""The server adds this to other messages. It says nothing about a field."""

_UNKNOWN = re.compile(r'(unknown|duplicate) field "([^"]+)"')
_INVALID = re.compile(r" is invalid: (.*)\Z", re.DOTALL)
_NEXT = re.compile(
    r"(?:\A|, )(?P<field><nil>|[A-Za-z][^\s,:]*): (?=(?:Invalid value|Required value|Unsupported value|Duplicate value|"
    r"Too long|Too many|Too few|Forbidden|Not found|Internal error)\b)"
)
_IN_BODY = re.compile(r"\b(?:spec|metadata)[^\s]{0,400} in body (?=should |must )")
_VALUE = re.compile(r'\AInvalid value: (?:"(?:object|array|string|integer|number|boolean|null)": |(?:null|\{\}): )?')
_NAMED = re.compile(r"\b[a-z][A-Za-z0-9]*(?:\[\])?(?:\.[a-z][A-Za-z0-9]*)+\b|\b[a-z]+[A-Z][A-Za-z]*\b")
_WORD = re.compile(r"\b[a-z]+\b")


def errors(answer: str | Mapping[str, Any]) -> Errors:
    """The messages of a Status object, or of its message alone.

    `answer` is the decoded Status, whose `details.causes` name the fields, or its message: `... is invalid: spec.stage:
    Unsupported value: ...`, or `... strict decoding error: unknown field "spec.x"`. A message about a field that has no
    control belongs to the nearest section around it. A message of a rule of the whole spec belongs to the first field
    that its text names. Never raises.
    """
    message = str(answer.get("message") or "") if isinstance(answer, Mapping) else answer
    found: dict[str, list[str]] = {}
    rest: list[str] = []
    for field, text in _causes(answer) or _parsed(message):
        text = _plain(text)
        if UNCHECKED in text:
            continue
        place = nearest(field)
        path = place[0] if place else _named(text)
        if path:
            found.setdefault(path, []).append(text if place or field in NO_FIELD else f"{field}: {text}")
        else:
            rest.append(text if field in NO_FIELD else f"{field}: {text}")
    if not found and not rest and message:
        rest.append(_cut(message))
    return Errors({path: "; ".join(dict.fromkeys(each)) for path, each in found.items()}, tuple(dict.fromkeys(rest)))


def _causes(answer: str | Mapping[str, Any]) -> list[tuple[str, str]]:
    details = answer.get("details") if isinstance(answer, Mapping) else None
    causes = details.get("causes") if isinstance(details, Mapping) else None
    if not isinstance(causes, Sequence) or isinstance(causes, str):
        return []
    each = [cause for cause in causes if isinstance(cause, Mapping) and cause.get("message")]
    return [(str(cause.get("field") or ""), str(cause["message"])) for cause in each]


def _parsed(message: str) -> list[tuple[str, str]]:
    """(field, text) of the errors in a message."""
    return list(_invalid(message)) or [(match[2], match[0]) for match in _UNKNOWN.finditer(message)]


def _invalid(message: str) -> Iterator[tuple[str, str]]:
    """The server joins the messages of several fields by commas, within brackets."""
    match = _INVALID.search(message)
    if not match:
        return
    text = match[1]
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    starts = list(_NEXT.finditer(text))
    ends = [*(each.start() for each in starts), len(text)][1:]
    for start, end in zip(starts, ends, strict=True):
        yield start["field"], text[start.end() : end]


def _plain(text: str) -> str:
    """The message without the path, which the place on the page says, and without a value that only names a type."""
    return _cut(_VALUE.sub("", _IN_BODY.sub("", text), count=1).strip())


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _named(text: str) -> str:
    """The first field that a message names. A path or a word with capitals names a field for certain: training.packing
    works in stages pt and sft only. Else a plain word may: stage pt needs data of format text."""
    for word in [*_NAMED.findall(text), *_WORD.findall(text)]:
        word = word.split("[]")[0]
        for path in (word, f"spec.{word}"):
            place = nearest(path)
            if place and place[0] == path:
                return path
    return ""
