"""What a CRD takes away from the objects that an earlier CRD accepted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_UPPER = ("maximum", "maxLength", "maxItems", "maxProperties")
_LOWER = ("minimum", "minLength", "minItems", "minProperties")


def narrowed(before: Schema, after: Schema, path: str = "") -> Iterator[str]:
    """Each way in which the later schema accepts less, or means something else, as 'path: what'."""
    if before.get("type") != after.get("type"):
        yield f"{path}: the type was {before.get('type')}"
    if before.get("default") != after.get("default"):
        yield f"{path}: the default was {before.get('default')!r}"
    for name in set(after.get("required", [])) - set(before.get("required", [])):
        yield f"{path}.{name}: it was not required"
    for value in set(before.get("enum", [])) - set(after.get("enum", [])) if "enum" in after else ():
        yield f"{path}: {value!r} was allowed"
    if "enum" in after and "enum" not in before:
        yield f"{path}: any value was allowed"
    for bound in (*_UPPER, *_LOWER):
        if bound not in after:
            continue
        old, new = before.get(bound), after[bound]
        if old is None or (old < new if bound in _LOWER else old > new):
            yield f"{path}: {bound} was {old}"
    if after.get("pattern") not in (None, before.get("pattern")):
        yield f"{path}: the pattern was {before.get('pattern')}"
    known = {rule["rule"] for rule in before.get("x-kubernetes-validations", [])}
    for rule in after.get("x-kubernetes-validations", []):
        # A rule that allows what an earlier rule allows, and more, takes nothing away.
        wider = any(rule["rule"].endswith(f" || ({earlier})") for earlier in known)
        if rule["rule"] not in known and not wider and not _is_about_new_fields(rule["rule"], before):
            yield f"{path}: the rule {rule['rule']!r} is new"
    yield from _inside(before, after, path)


def _is_about_new_fields(rule: str, before: Schema) -> bool:
    """Whether a rule holds for every object without the fields that the earlier schema did not have."""
    named = set(re.findall(r"\b(?:self|oldSelf)\.(\w+)", rule))
    new = named - set(before.get("properties", {}))
    guard = re.match(r"!has\(self\.([\w.]+)\) \|\|", rule)
    return (bool(new) and named == new) or (guard is not None and not _has(before, guard[1]))


def _has(node: Schema, path: str) -> bool:
    """Whether a schema has a field, which may be a field of a field."""
    for name in path.split("."):
        node = node.get("properties", {}).get(name, {})
    return bool(node)


def _inside(before: Schema, after: Schema, path: str) -> Iterator[str]:
    for name, schema in before.get("properties", {}).items():
        where = f"{path}.{name}".removeprefix(".")
        if name in after.get("properties", {}):
            yield from narrowed(schema, after["properties"][name], where)
        else:
            yield f"{where}: the field is gone"
    for part, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(before.get(part), dict) and isinstance(after.get(part), dict):
            yield from narrowed(before[part], after[part], path + mark)
