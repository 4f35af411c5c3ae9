"""Tools that a model may call, and its calls of them, as chat templates take both. Used by every format."""

from typing import Any

from finetune_api.data import ColumnsSpec

from finetune_trainer.data.formats.values import Fields, from_json, shown
from finetune_trainer.data.samples import BadRow


def tools(row: Fields, columns: ColumnsSpec) -> list[dict[str, Any]]:
    """The tools of a row: a list or its JSON, of functions as OpenAI writes them, or bare {name, parameters}."""
    key = columns.tools or "tools"
    value = from_json(row.get(key))
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise BadRow("bad-tools", f"{key}: found {shown(value)}, expected a list of functions, or its JSON")
    return [_tool(tool, f"{key} {number}") for number, tool in enumerate(value, start=1)]


def _tool(value: Any, where: str) -> dict[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow("bad-tools", f"{where}: found {shown(value)}, expected {{name, description, parameters}}")
    return value if function is not value else {"type": "function", "function": function}


def calls(value: Any, where: str) -> list[dict[str, Any]]:
    """tool_calls of a message: {id, type, function: {name, arguments}}, or bare {name, arguments}."""
    if not isinstance(value, list):
        raise BadRow("bad-tools", f"{where}: found {shown(value)}, expected a list of {{name, arguments}}")
    return [_call(call, where) for call in value]


def spoken_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """A function_call message of sharegpt: the JSON of one call, or of a list of them."""
    call = from_json(value)
    if not isinstance(call, dict | list) or not call:
        raise BadRow(
            "bad-tools", f'{where}: found {shown(value)}, expected JSON: {{"name": ..., "arguments": {{...}}}}'
        )
    return calls(call if isinstance(call, list) else [call], where)


def _call(value: Any, where: str) -> dict[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow("bad-tools", f"{where}: found {shown(value)}, expected {{name, arguments}}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = from_json(arguments or "{}")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        expected = "an object, or its JSON"
        raise BadRow(
            "bad-tools", f"{where}: arguments of {function['name']!r}: found {shown(arguments)}, expected {expected}"
        )
    call: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if isinstance(value.get("id"), str):
        call["id"] = value["id"]
    return call
