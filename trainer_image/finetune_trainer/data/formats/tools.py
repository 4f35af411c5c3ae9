"""Tools that a model may call, and its tool calls, in the form of chat templates. Every format uses it.

Arrow gives all objects of a column the same keys and writes null for those that an object lacks. Data that was exported
from Arrow has these nulls, and a template would write them. So nulls are dropped from tools, and from the arguments of
a call if the tool does not declare them.
"""

from typing import Any

from finetune_trainer.data.formats.fields import Fields, is_empty, keys_of, parse_json, shown
from finetune_trainer.data.samples import RowError, ToolCall, ToolSchema

VALUES = ("const", "default", "enum", "examples")
"""Keys of a schema that hold values, not schemas: a null inside them has a meaning."""
ARGUMENTS = ("parameters", "args", "input")
"""What other formats call the arguments of a call."""


def tools(fields: Fields) -> list[ToolSchema]:
    """The tools of a row: a list or its JSON, of functions as OpenAI writes them, or bare {name, parameters}."""
    # OpenAI's API called them functions at first.
    key = fields.column("tools", "tools", *(["functions"] if not fields.has("tools") else []))
    if key is None or key not in fields.row:
        return []
    value = parse_json(fields.get(key), key)
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise RowError("bad-tools", f"{key}: found {shown(value)}, expected a list of functions, or its JSON")
    return [_tool(tool, f"{key} {number}") for number, tool in enumerate(value, start=1)]


def _tool(value: Any, place: str) -> ToolSchema:
    value = parse_json(value, place)
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError("bad-tools", f"{place}: found {shown(value)}, expected {{name, description, parameters}}")
    tool = value if function is not value else {"type": "function", "function": function}
    return _without_null(tool) if _has_null(tool) else tool


def tool_calls(value: Any, place: str, fields: Fields, key: str) -> list[ToolCall]:
    """tool_calls of a message: {id, type, function: {name, arguments}}, or bare {name, arguments}. ``key`` names them
    in the report."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError("bad-tools", f"{place}: found {shown(value)}, expected a list of {{name, arguments}}")
    return [_tool_call(call, place, fields, key) for call in value]


def function_call(value: Any, place: str, fields: Fields, key: str) -> list[ToolCall]:
    """The content of sharegpt's function_call message: the JSON of a call, or of a list of calls."""
    calls = parse_json(value, place)
    if not isinstance(calls, dict | list) or not calls:
        raise RowError(
            "bad-tools", f'{place}: found {shown(value)}, expected JSON: {{"name": ..., "arguments": {{...}}}}'
        )
    return tool_calls(calls, place, fields, key)


def _tool_call(value: Any, place: str, fields: Fields, key: str) -> ToolCall:
    outer = {name: inner for name, inner in value.items() if not is_empty(inner)} if isinstance(value, dict) else {}
    function = outer.pop("function", None)
    if isinstance(function, dict):
        inner = {name: value for name, value in function.items() if not is_empty(value)}
        names = f"{key}.function"
    else:
        if function is not None:
            outer["function"] = function
        inner, names = outer, key
    name, arguments = inner.pop("name", None), inner.pop("arguments", None)
    if not isinstance(name, str):
        raise RowError("bad-tools", f"{place}: found {shown(value)}, expected {{name, arguments}}")
    other = next((other for other in ARGUMENTS if other in inner), None)
    if arguments is None and other:
        found = f"found {keys_of(function if isinstance(function, dict) else value)}"
        raise RowError("bad-tools", f"{place}: {found}, expected {{name, arguments}}: rename {other!r} to 'arguments'")
    call: ToolCall = {"type": "function", "function": {"name": name, "arguments": {}}}
    call["function"]["arguments"] = _arguments(arguments, name, place, fields)
    if isinstance(outer.get("id"), str):
        call["id"] = outer.pop("id")
    if outer.get("type") == "function":
        del outer["type"]
    fields.unused.update(f"{key}.{rest}" for rest in outer)
    if inner is not outer:
        fields.unused.update(f"{names}.{rest}" for rest in inner)
    return call


def _arguments(value: Any, name: str, place: str, fields: Fields) -> dict[str, Any]:
    place = f"{place}: arguments of {name!r}"
    arguments = parse_json(value, place)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError("bad-tools", f"{place}: found {shown(arguments)}, expected an object, or its JSON")
    if _has_null(arguments):
        tool = next((tool for tool in fields.tools if tool["function"]["name"] == name), None)
        if tool is not None:
            arguments = _declared(arguments, tool["function"].get("parameters"))
    return dict(arguments)


def _has_null(value: Any) -> bool:
    """Whether there is a null anywhere in a list or object."""
    for inner in value.values() if isinstance(value, dict) else value:
        if inner is None or (isinstance(inner, dict | list) and _has_null(inner)):
            return True
    return False


def _without_null(value: Any) -> Any:
    """A schema without keys that are null."""
    if isinstance(value, dict):
        return {
            key: inner if key in VALUES else _without_null(inner)
            for key, inner in value.items()
            if inner is not None or key == "const"
        }
    if isinstance(value, list):
        return [_without_null(inner) for inner in value]
    return value


def _declared(value: Any, schema: Any) -> Any:
    """A value without the null keys that its schema does not declare."""
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(value, dict):
        declared = schema.get("properties")
        declared = declared if isinstance(declared, dict) else {}
        return {
            key: _declared(inner, declared.get(key))
            for key, inner in value.items()
            if inner is not None or key in declared
        }
    if isinstance(value, list):
        return [_declared(inner, schema.get("items")) for inner in value]
    return value
