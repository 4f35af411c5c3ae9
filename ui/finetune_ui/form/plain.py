"""YAML from people, as plain data that can be sent to Kubernetes: bounded in size, depth and number of values.

A few lines of YAML can mean billions of values by its aliases, so what was read is counted before anything walks it.
"""

import math
from typing import Any

import yaml
from finetune_api import strict_yaml
from finetune_cli.problem import Problem

from finetune_ui import texts

MAX_BYTES = 64 * 1024
"""The operator accepts no larger job: it travels in an annotation of the pods."""
MAX_DEPTH = 32
"""The schema of a FineTuneJob has 12 levels."""
MAX_VALUES = 20_000
MAX_INTEGER = 2**63


def documents(text: str) -> list[Any]:
    """The documents of a YAML text, without empty documents. Raises Problem."""
    size = len(text.encode("utf-8", "replace"))
    if size > MAX_BYTES:
        raise Problem(texts.text("form.too_large", size=f"{size:,}", most=f"{MAX_BYTES:,}"))
    try:
        found = [each for each in strict_yaml.load_all(text) if each is not None]
    except RecursionError as error:
        raise Problem(texts.text("form.too_deep", most=MAX_DEPTH)) from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        # PyYAML lets errors of Python out for values such as 2024-99-99 and !!int "x".
        raise Problem(texts.text("form.no_yaml", problem=" ".join(str(error).split()))) from error
    check(found)
    return found


def document(text: str) -> Any:
    """The only document; None for an empty text. Raises Problem."""
    found = documents(text)
    if len(found) > 1:
        raise Problem(texts.text("form.several", count=len(found)))
    return found[0] if found else None


class _Dumper(yaml.SafeDumper):
    """Writes no anchors. A text with an unusual line break is in double quotes, because YAML reads such a break as a
    space within other quotes, which PyYAML forgets."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    quoted = any(mark in text for mark in "\r\x85\u2028\u2029\ufeff")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


_Dumper.add_representer(str, _text)


def written(value: Any) -> str:
    """YAML of plain data, which `document` reads as the same data."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def check(value: Any) -> None:
    """Raises Problem unless the value is plain data of a bearable size: what JSON can say, without reading it deeper
    than `MAX_DEPTH`."""
    waiting, seen = [(value, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise Problem(texts.text("form.too_many", most=f"{MAX_VALUES:,}"))
        if depth > MAX_DEPTH:
            raise Problem(texts.text("form.too_deep", most=MAX_DEPTH))
        if isinstance(node, dict):
            for key in node:
                if not isinstance(key, str):
                    raise Problem(texts.text("form.no_text_key", key=_short(key)))
            waiting += [(each, depth + 1) for each in node.values()]
        elif isinstance(node, list):
            waiting += [(each, depth + 1) for each in node]
        elif not _is_scalar(node):
            raise Problem(texts.text("form.no_json", value=_short(node)))


def _is_scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return -MAX_INTEGER <= value < MAX_INTEGER
    return value is None or isinstance(value, bool | str)


def _short(value: Any) -> str:
    try:
        text = str(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 40 else text[:39] + "…"
