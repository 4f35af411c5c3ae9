"""JSON schemas for kubeconform: of Kubernetes' own kinds and of FineTuneJob.

Every object is closed, so that a wrong field is an error.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import binaries, go

_FREE = {
    # The API server takes a number, too.
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["string", "number"]},
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": ["string", "integer"]},
}
"""Definitions whose type is not that of their JSON."""
_POINTER = "#/definitions/"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def write(folder: Path, crd: Path, kinds: set[str]) -> None:
    """Write a file for each version of these kinds, named as kubeconform asks for it: <kind>-<group>-<version>.json."""
    kubernetes = go.source(binaries.MODULES / "kubernetes", "k8s.io/kubernetes")
    swagger = kubernetes / "api" / "openapi-spec" / "swagger.json"
    definitions: dict[str, Any] = json.loads(swagger.read_text(encoding="utf-8"))["definitions"]
    closed = {name: _FREE.get(name, _closed(schema)) for name, schema in definitions.items()}
    for name, schema in definitions.items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            if kind["kind"] in kinds:
                _write(folder, kind, closed[name], closed)
    own = yaml.safe_load(crd.read_text(encoding="utf-8"))["spec"]
    for version in own["versions"]:
        kind = {"kind": own["names"]["kind"], "group": own["group"], "version": version["name"]}
        schema = version["schema"]["openAPIV3Schema"]
        schema["properties"]["metadata"] = {"$ref": _POINTER + _META}
        _write(folder, kind, _closed(schema), closed)


def _write(folder: Path, kind: dict[str, str], schema: dict[str, Any], known: dict[str, Any]) -> None:
    needed: dict[str, Any] = {}
    waiting = [schema]
    while waiting:
        for name in set(re.findall(rf'"{_POINTER}([^"]+)"', json.dumps(waiting.pop()))) - set(needed):
            needed[name] = known[name]
            waiting.append(known[name])
    group = kind["group"].split(".")[0]
    name = "-".join(part for part in (kind["kind"].lower(), group, kind["version"]) if part)
    (folder / f"{name}.json").write_text(json.dumps({**schema, "definitions": needed}), encoding="utf-8")


def _closed(schema: Any) -> Any:
    """The schema, with every object that lists its properties closed."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made:
        made["additionalProperties"] = False
    if made.get("x-kubernetes-int-or-string") is True:
        made["type"] = ["string", "integer"]
    return made
