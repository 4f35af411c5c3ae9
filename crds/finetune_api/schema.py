"""Converts the JSON schema of pydantic to the structural schema of Kubernetes.

A structural schema allows neither ``$ref`` nor ``null``, requires that every default is in the schema, and rejects
``additionalProperties`` beside ``properties``. The API server prunes or refuses unknown fields by itself.
"""

from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

_DROPPED = ("title", "$defs", "discriminator")


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of a model, without references."""
    root = model.model_json_schema(by_alias=True)
    return _convert(root, root.get("$defs", {}))


def _convert(node: Schema, definitions: dict[str, Schema]) -> Schema:
    node = _inlined(_without_null(_inlined(node, definitions)), definitions)
    out = {key: value for key, value in node.items() if key not in _DROPPED}
    if "const" in out:
        out["enum"] = [out.pop("const")]
        out.setdefault("type", "string")
    out.pop("propertyNames", None)
    if "patternProperties" in out:
        # A structural schema cannot bound keys. The models check them, and a CEL rule if they matter to Kubernetes.
        (out["additionalProperties"],) = out.pop("patternProperties").values()
    if "properties" in out:
        out.pop("additionalProperties", None)
        out["properties"] = {name: _convert(sub, definitions) for name, sub in out["properties"].items()}
    elif isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = _convert(out["additionalProperties"], definitions)
    if "items" in out:
        out["items"] = _convert(out["items"], definitions)
        out.setdefault("x-kubernetes-list-type", "atomic")
    _exclusive_bounds(out)
    if out.get("type") == "integer":
        out["format"] = "int64" if out.get("maximum", 2**31) > 2**31 - 1 else "int32"
    if "description" in out:
        out["description"] = " ".join(out["description"].split())
    if "default" in out:
        default = _plain_default(out["default"])
        if default is None:
            del out["default"]
        else:
            out["default"] = default
    return dict(sorted(out.items()))


def _inlined(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """The node with its reference resolved. Keys beside the reference (description, default) take precedence."""
    if "$ref" not in node:
        return node
    target = definitions[node["$ref"].rsplit("/", 1)[1]]
    return {**_inlined(target, definitions), **{key: value for key, value in node.items() if key != "$ref"}}


def _without_null(node: Schema) -> Schema:
    """``X | None`` becomes X: a user leaves an optional field out instead of writing null."""
    options = node.get("anyOf")
    if not options or {"type": "null"} not in options:
        return node
    (only,) = [option for option in options if option != {"type": "null"}]
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    return {**only, **rest} if "$ref" not in only else {"$ref": only["$ref"], **rest}


def _exclusive_bounds(out: Schema) -> None:
    """OpenAPI 3.0 writes exclusive bounds as flags."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in out and not isinstance(out[exclusive], bool):
            out[bound] = out[exclusive]
            out[exclusive] = True


def _plain_default(value: Any) -> Any:
    """The default of a section is ``{}``. Its fields have their own defaults, so that each default is defined once."""
    return {} if isinstance(value, dict) else value
