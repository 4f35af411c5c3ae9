"""A FineTuneJob becomes the values of the form."""

from typing import Any

from finetune_api.job import API_VERSION, KIND
from finetune_cli.problem import Problem

from finetune_ui import texts
from finetune_ui.form import names, plain, scalars
from finetune_ui.form.fields import Field, tree
from finetune_ui.form.layout import ROW_LIMIT, STAGE_SECTIONS


class _Nothing:
    """Stands for no rest: None is a value of YAML."""


NOTHING = _Nothing()


def values(job: dict[str, Any]) -> dict[str, str]:
    """What `render` needs to show a job, so that `manifest` of the posted form is the job again.

    Nothing is lost: a field that the form does not know, a value of another type than its field's, an empty list, a
    text that a browser would change, and the settings of other stages are kept in the box "Other fields". A list
    goes there as a whole, because YAML beside the rows could not say which row it means. To refuse such fields instead
    would forbid to clone a job that a newer release wrote; to drop them would train something else in silence. The API
    server names what it does not know, as for `kubectl apply`. Only a quantity written as a number (`cpu: 4`) comes
    back as text (`cpu: "4"`), which means the same.

    Raises Problem if the job is no mapping, or too large or too deep to be one.
    """
    if not isinstance(job, dict):
        raise Problem(texts.text("form.no_mapping"))
    plain.check(job)
    known = {
        name: value for name, value in job.items() if (name, value) not in (("apiVersion", API_VERSION), ("kind", KIND))
    }
    out: dict[str, str] = {}
    spec = job.get("spec")
    rest = _split(tree(), "", known, str(spec.get("stage")) if isinstance(spec, dict) else "", out)
    if rest is not NOTHING and rest != {}:
        out[names.OTHER] = plain.written(rest)
    return out


def _split(field: Field, path: str, value: Any, stage: str, out: dict[str, str]) -> Any:
    """Puts what the controls of a field can show into `out`; returns the rest, NOTHING if they show everything."""
    if value in ({}, "") and field.may_be_empty:
        out[names.is_set(path)] = "on"
        return NOTHING
    if field.kind in ("rows", "map") and isinstance(value, list | dict) and len(value) > ROW_LIMIT:
        return value
    match field.kind:
        case "section" if isinstance(value, dict) and (value or not path):
            return _section(field, path, value, stage, out)
        case "rows" if isinstance(value, list) and value:
            return _rows(field, path, value, stage, out)
        case "map" if _is_map(field, value):
            for at, (key, each) in enumerate(value.items()):
                out[names.key(f"{path}[{at}]")] = key
                out[names.value(f"{path}[{at}]")] = str(each)
            return NOTHING
        case "choices" if isinstance(value, list) and value and value == [c for c in field.choices if c in value]:
            out.update({names.choice(path, word): "on" for word in value})
            return NOTHING
        case "yaml" if isinstance(value, dict):
            out[path] = plain.written(value)
            return NOTHING
        case _:
            text = scalars.shown(field, value)
            if text is None:
                return value
            out[path] = text
            return NOTHING


def _section(field: Field, path: str, value: dict[str, Any], stage: str, out: dict[str, str]) -> Any:
    rest = {}
    for name, each in value.items():
        part = field.part(name)
        if part is None or (part.path in STAGE_SECTIONS and part.name != stage):
            rest[name] = each
            continue
        left = _split(part, f"{path}.{name}".lstrip("."), each, stage, out)
        if left is not NOTHING:
            rest[name] = left
    return rest or NOTHING


def _rows(field: Field, path: str, value: list[Any], stage: str, out: dict[str, str]) -> Any:
    """A list whose items fit entirely, or the whole list as rest."""
    found: dict[str, str] = {}
    for at, item in enumerate(value):
        # An empty item would be an empty row, which the form leaves out.
        if not isinstance(item, dict) or not item:
            return value
        if _section(field, f"{path}[{at}]", item, stage, found) is not NOTHING:
            return value
    out.update(found)
    return NOTHING


def _is_map(field: Field, value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    keys = all(scalars.is_line(key) for key in value)
    if field.numbers:
        return keys and all(scalars.whole(each) is not None for each in value.values())
    return keys and all(isinstance(each, str) and (each == "" or scalars.is_line(each)) for each in value.values())
