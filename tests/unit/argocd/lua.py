"""Lua scripts of Argo CD, run as its controller runs them: with the object as the global `obj`, and without libraries.

lupa has the Lua 5.1 that Argo CD's interpreter follows. The controlplane tier runs the same scripts in Argo CD itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lupa import lua51


def run(script: Path, obj: Any) -> Any:
    """What a script returns, as plain dictionaries and lists. Raises lua51.LuaError if it calls `error`."""
    runtime = lua51.LuaRuntime(register_eval=False, unpack_returned_tuples=True)
    hidden = ("io", "string", "math", "debug", "coroutine")
    for library in hidden:
        runtime.globals()[library] = None
    runtime.globals()["obj"] = runtime.table_from(obj, recursive=True)
    return _plain(runtime.execute(script.read_text()))


def _plain(value: Any) -> Any:
    """A table with keys from 1 is a list, as for Argo CD; it also takes an empty table for a list."""
    if lua51.lua_type(value) != "table":
        return value
    keys = list(value.keys())
    if keys == list(range(1, len(keys) + 1)):
        return [_plain(value[key]) for key in keys]
    return {key: _plain(value[key]) for key in keys}
