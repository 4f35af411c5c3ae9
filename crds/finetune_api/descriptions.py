"""The descriptions of fields: the docstring after each attribute, read from the source when a schema is generated.

pydantic can do the same when a class is made (``use_attribute_docstrings``). That parses the source of every model in
every process that imports the API, and takes a quarter of the time of that import. Only schemas need descriptions.
"""

import ast
import inspect
from functools import cache
from itertools import pairwise
from sys import modules


def of_fields(cls: type) -> dict[str, str]:
    """Attribute -> description, of the class and of its bases. Attributes without a docstring are left out."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith(("builtins", "pydantic")):
            found |= _of_module(base.__module__).get(base.__qualname__, {})
    return found


@cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    """Class -> attribute -> description, of the classes at the top of a module. Empty if its source is not there."""
    try:
        source = inspect.getsource(modules[name])
    except (KeyError, OSError, TypeError):
        return {}
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {node.name: _of_body(node.body) for node in classes}


def _of_body(body: list[ast.stmt]) -> dict[str, str]:
    found = {}
    for attribute, after in pairwise(body):
        match attribute, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text)
    return found
