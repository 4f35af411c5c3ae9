"""Specs that set every field, and changes of single fields, for the tests of the API."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from finetune_api.crd import schema
from finetune_api.data import MEDIA

from tests.controlplane.scene import FTJ
from tests.kube import ApiError, Kube, Object

HEAD = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": FTJ}
SPEC_SCHEMA: Object = schema()["properties"]["spec"]
SPECS: list[Object] = list(yaml.safe_load_all((Path(__file__).parent / "full.yaml").read_text()))
FULL, WITH_CLAIM, FROZEN, RM, DPO, DPO_AFTER, DPO_ALONE, KTO, KTO_AFTER, PPO, PPO_AFTER, PPO_SERVED = SPECS
MUTABLE = {
    "backoffLimit",
    "startDeadlineSeconds",
    "activeDeadlineSeconds",
    "ttlSecondsAfterFinished",
    "retry",
    "notify",
    "notify.secret",
    "notify.when",
    "checkpoints.keep",
    "suspend",
}
REFUSED = (
    "cannot be changed: delete the job",
    "can be changed only while the job is suspended",
    "cannot be taken back",
)
"""What the server says of a change that it does not allow, or not now."""
MOST_NODES = 9999
MEDIA_COLUMNS = {f"{where}.columns.{kind}" for where in ("datasets", "evaluation.datasets") for kind in MEDIA}
"""Fields that there are so that a message can refuse them: only text is trained."""

Part = dict[str, Any] | list[Any]
Steps = tuple[str | int, ...]


def fields(node: Object, at: str = "") -> Iterator[tuple[str, Object]]:
    """Every field below a schema's node, as a dotted path without list positions."""
    for name, sub in node.get("properties", {}).items():
        path = f"{at}.{name}".lstrip(".")
        yield path, sub
        yield from fields(sub, path)
    if isinstance(node.get("items"), dict):
        yield from fields(node["items"], at)


def places(value: Any, node: Object, steps: Steps = ()) -> Iterator[tuple[Steps, Object, bool]]:
    """Every field set in a value: how to get there, its schema, and whether it may be left out."""
    if "properties" in node:
        for name, sub in value.items():
            here = (*steps, name)
            yield here, node["properties"][name], name not in node.get("required", [])
            yield from places(sub, node["properties"][name], here)
    elif "items" in node:
        for position, item in enumerate(value):
            yield from places(item, node["items"], (*steps, position))


def path_of(steps: Steps) -> str:
    return ".".join(step for step in steps if isinstance(step, str))


def another(value: Any, node: Object) -> Any:
    """Another valid value; None if no other value is valid."""
    if "enum" in node:
        return next((choice for choice in node["enum"] if choice != value), None)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return next((n for n in (value + 1, value - 1) if node.get("minimum", n) <= n <= node.get("maximum", n)), None)
    if isinstance(value, str):
        return "7" if node.get("x-kubernetes-int-or-string") else value + "x"
    if isinstance(value, dict) and "additionalProperties" in node:
        return {**value, "more": 1 if node["additionalProperties"]["type"] == "integer" else "x"}
    if isinstance(value, list) and "enum" in node["items"]:
        return [choice for choice in node["items"]["enum"] if choice not in value] or None
    if isinstance(value, list) and isinstance(value[0], str):
        return [*value, "more"]
    return None


def changed(spec: Object, steps: Steps, value: Any) -> Object:
    """The spec with another value there; None: without it."""
    out = copy.deepcopy(spec)
    part: Any = out
    for step in steps[:-1]:
        part = part[step]
    if value is None:
        del part[steps[-1]]
    else:
        part[steps[-1]] = value
    return out


WRONG_TYPES: dict[str, Any] = {
    "string": 7,
    "integer": "seven",
    "number": "seven",
    "boolean": "yes",
    "array": "text",
    "object": "text",
}
"""Type -> a value of another type."""
_TEXTS = ("", " ", "..", "A b", "-x-", "no/such:thing", "x\n", "x\0")


def invalid(value: Any, node: Object) -> Iterator[Any]:
    """Values that a schema's node does not allow in place of a valid value: another type, and one for each bound."""
    if not node.get("x-kubernetes-int-or-string"):
        yield WRONG_TYPES[node["type"]]
    if "enum" in node:
        yield "no-such-value"
    if "minimum" in node:
        yield node["minimum"] - (0 if node.get("exclusiveMinimum") else 1)
    if "maximum" in node:
        yield node["maximum"] + (0 if node.get("exclusiveMaximum") else 1)
    if "maxLength" in node:
        yield "x" * (node["maxLength"] + 1)
    if "pattern" in node:
        yield next(text for text in _TEXTS if not re.search(node["pattern"], text))
    if "maxItems" in node:
        yield [*value, *[value[0]] * node["maxItems"]]
    if node.get("minItems"):
        yield []
    if "properties" in node:
        yield {**value, "noSuchField": 1}


def updates(kube: Kube, namespace: str, spec: Object, name: str = "job") -> Callable[[Object], str]:
    """Creates a job with the spec; the returned function tries to change it: what the server says, '' if it's fine."""
    stored = kube.create({**HEAD, "metadata": {"name": name}, "spec": spec}, namespace)

    def attempt(wanted: Object) -> str:
        path = f"apis/{HEAD['apiVersion']}/namespaces/{namespace}/finetunejobs/{name}"
        try:
            kube.call("PUT", path, {**stored, "spec": wanted}, dryRun="All", fieldValidation="Strict")
        except ApiError as error:
            return error.message
        return ""

    return attempt
