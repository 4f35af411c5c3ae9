"""A posted form becomes a FineTuneJob. Nothing here raises an error for what a browser, or an attacker, posts."""

from collections.abc import Sequence
from typing import Any

from finetune_api.job import API_VERSION, KIND
from finetune_cli.problem import Problem

from finetune_ui import texts
from finetune_ui.form import names, plain, scalars
from finetune_ui.form.fields import Field, tree
from finetune_ui.form.layout import STAGE, STAGE_SECTIONS
from finetune_ui.form.names import Values
from finetune_ui.form.refusals import Errors

Posted = Sequence[tuple[str, str]]


def typed(posted: Posted) -> dict[str, str]:
    """The values to show again: what was posted, with a row more or less if such a button was pressed. Empty rows are
    left out and rows are numbered from 0, as `manifest` numbers them, so that a message of the API server about row 1
    is shown at row 1. Names that are no control are left out."""
    values = {name: text.replace("\r\n", "\n").replace("\r", "\n") for name, text in posted}
    button = names.pressed(posted)
    if button.startswith(names.REMOVE):
        for name in names.below(values, button.removeprefix(names.REMOVE)):
            del values[name]
    if button.startswith(names.ADD):
        path = button.removeprefix(names.ADD)
        there = names.rows(values, path)
        # Rows that are there stay, even if they are empty.
        for number in [*there, there[-1] + 1 if there else 0]:
            values[names.row(f"{path}[{number}]")] = "on"
    out: dict[str, str] = {}
    _numbered(tree(), "", "", values, names.filled_rows(values), out)
    out[names.OTHER] = values.get(names.OTHER, "")
    return out


def manifest(posted: Posted) -> dict[str, Any]:
    """The FineTuneJob. Fields that nobody set are absent, so that their defaults are those of the API.

    A text that is no value of its field's type is kept as text, which the API server refuses by name; so is YAML that
    cannot be read. Settings of other stages than the chosen stage are left out."""
    return _manifest(typed(posted))


def of_controls(values: Values) -> dict[str, Any]:
    """The part of a FineTuneJob that is in the controls, from values as `typed` returns them."""
    return _section(tree(), "", values) or {}


def _manifest(values: Values) -> dict[str, Any]:
    job = {"apiVersion": API_VERSION, "kind": KIND, **of_controls(values)}
    try:
        other = plain.document(values.get(names.OTHER, ""))
    except Problem:
        other = None
    return merged(job, other) if isinstance(other, dict) else job


def mistakes(posted: Posted) -> Errors:
    """What the API server cannot see: YAML that cannot be read, and keys of maps that are missing or there twice."""
    values = typed(posted)
    found: dict[str, str] = {}
    _mistakes(tree(), "", values, found)
    if message := _mistake_of_yaml(values.get(names.OTHER, "")):
        found[names.OTHER] = message
    return Errors(found, ())


def merged(job: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both, field by field. Where both have a field that is no section, the second wins."""
    out = dict(job)
    for name, value in other.items():
        ours = out.get(name)
        out[name] = merged(ours, value) if isinstance(ours, dict) and isinstance(value, dict) else value
    return out


def stage_of(values: Values) -> str:
    """The chosen stage, '' if none is."""
    return values.get(STAGE, "").strip()


def is_shown(field: Field, values: Values) -> bool:
    """Whether the form has the field: settings of other stages than the chosen stage are not there."""
    return field.path not in STAGE_SECTIONS or field.name == stage_of(values)


def _numbered(field: Field, old: str, new: str, values: Values, filled: set[str], out: dict[str, str]) -> None:
    """Copy the controls of a field from one path to another, without its empty rows."""
    for name in (part for part in _own_names(field, old) if part in values):
        out[new + name[len(old) :]] = values[name]
    if field.kind == "section":
        _parts_numbered(field, old, new, values, filled, out)
    elif field.kind in ("rows", "map"):
        full = [at for at in names.rows(values, old) if f"{old}[{at}]" in filled]
        for number, at in enumerate(full):
            here, there = f"{old}[{at}]", f"{new}[{number}]"
            for part in (names.row(here), names.key(here), names.value(here)):
                if part in values:
                    out[there + part[len(here) :]] = values[part]
            _parts_numbered(field, here, there, values, filled, out)


def _parts_numbered(field: Field, old: str, new: str, values: Values, filled: set[str], out: dict[str, str]) -> None:
    for part in field.parts:
        if is_shown(part, values):
            _numbered(part, f"{old}.{part.name}".lstrip("."), f"{new}.{part.name}".lstrip("."), values, filled, out)


def _own_names(field: Field, path: str) -> list[str]:
    return [path, names.is_set(path), *(names.choice(path, str(word)) for word in field.choices)]


def _value(field: Field, path: str, values: Values) -> Any:
    """The value of a field, None if nobody set it."""
    value: Any = None
    match field.kind:
        case "section":
            value = _section(field, path, values)
        case "rows":
            value = [_section(field, f"{path}[{at}]", values) or {} for at in names.rows(values, path)] or None
        case "map":
            value = _map(field, path, values)
        case "choices":
            value = [word for word in field.choices if names.choice(path, word) in values] or None
        case "yaml":
            value = _yaml(values.get(path, ""))
        case _:
            value = scalars.read(field, values.get(path, ""))
    if value is None and field.may_be_empty and names.is_set(path) in values:
        return {} if field.kind in ("section", "map") else ""
    return value


def _section(field: Field, path: str, values: Values) -> dict[str, Any] | None:
    found = {
        part.name: value
        for part in field.parts
        if is_shown(part, values) and (value := _value(part, f"{path}.{part.name}".lstrip("."), values)) is not None
    }
    return found or None


def _map(field: Field, path: str, values: Values) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for at in names.rows(values, path):
        key, text = _entry(path, at, values)
        if key:
            found[key] = int(text) if field.numbers and scalars.WHOLE.fullmatch(text) else text
    return found or None


def _entry(path: str, at: int, values: Values) -> tuple[str, str]:
    """Key and value of a row of a map."""
    here = f"{path}[{at}]"
    return values.get(names.key(here), "").strip(), values.get(names.value(here), "").strip()


def _yaml(text: str) -> Any:
    try:
        return plain.document(text)
    except Problem:
        return text


def _mistake_of_yaml(text: str) -> str:
    try:
        value = plain.document(text)
    except Problem as problem:
        return str(problem)
    return "" if value is None or isinstance(value, dict) else texts.text("form.no_mapping")


def _mistakes(field: Field, path: str, values: Values, found: dict[str, str]) -> None:
    if field.kind == "yaml" and (message := _mistake_of_yaml(values.get(path, ""))):
        found[path] = message
    elif field.kind == "map":
        seen: set[str] = set()
        for at in names.rows(values, path):
            key, text = _entry(path, at, values)
            if not key and text:
                found[path] = texts.text("form.no_key", value=text)
            elif key in seen:
                found[path] = texts.text("form.key_twice", key=key)
            seen.add(key)
    places = [path] if field.kind == "section" else []
    if field.kind == "rows":
        places = [f"{path}[{at}]" for at in names.rows(values, path)]
    for place in places:
        for part in field.parts:
            _mistakes(part, f"{place}.{part.name}".lstrip("."), values, found)
