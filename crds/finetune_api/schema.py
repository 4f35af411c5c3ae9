"""From pydantic's JSON schema to Kubernetes' structural schema.

A structural schema knows neither ``$ref`` nor ``null``, wants every default inside the schema and rejects
``additionalProperties`` beside ``properties``; unknown fields are pruned or refused by the API server itself.
"""

from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

_DROPPED = ("title", "$defs", "discriminator")


def structural(model: type[BaseModel]) -> Schema:
    """The model's schema as a CRD wants it, self-contained."""
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
        # A structural schema can't bound keys; whoever reads the map does.
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
    if "default" in out:
        default = _plain_default(out["default"])
        if default is None:
            del out["default"]
        else:
            out["default"] = default
    return dict(sorted(out.items()))


def _inlined(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """The node with its reference resolved; what stands beside the reference (description, default) wins."""
    if "$ref" not in node:
        return node
    target = definitions[node["$ref"].rsplit("/", 1)[1]]
    return {**_inlined(target, definitions), **{key: value for key, value in node.items() if key != "$ref"}}


def _without_null(node: Schema) -> Schema:
    """``X | None`` becomes X: an optional field is one that may be left out."""
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
    """A section's default is ``{}``: its own fields bring their defaults, so each stands in one place."""
    return {} if isinstance(value, dict) else value
