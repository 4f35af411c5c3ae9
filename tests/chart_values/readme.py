"""The chart's README.md: how it is installed, and a table of all values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.chart_values.reader import Value

_HEAD = """<!-- Generated from {chart}/values.yaml by `make generate`; do not edit. -->
# finetune-operator

{description}. It needs Kubernetes {kubernetes} and Helm 3.14 or newer.

```
helm upgrade --install finetune-operator charts/finetune-operator --namespace finetune-system --create-namespace \\
    --set image.repository=registry.example/finetune-operator \\
    --set trainer.image.repository=registry.example/finetune-trainer
helm test finetune-operator --namespace finetune-system --timeout 30m     # train a tiny model, on a CPU
```

[docs/install.md](../../docs/install.md) explains upgrades, roll backs, clusters without a way to the internet, and
what stays after an uninstall. A value that this page does not list is refused, and so is a value of another type.
"""
_WORDS = {bool: "true or false", int: "integer", str: "text", list: "texts"}
_TABLE = "| value | type | what it sets | default |\n| --- | --- | --- | --- |\n"


def readme(values: list[Value], chart: str, about: dict[str, Any]) -> str:
    """The file. ``about`` is Chart.yaml."""
    head = _HEAD.format(
        chart=chart,
        description=about["description"],
        kubernetes=about["kubeVersion"].removesuffix(".0-0").lstrip(">=") + " or newer",
    )
    return head + "".join(_tables(values))


def _tables(values: list[Value]) -> Iterator[str]:
    """First the values without a section, then a table for each section."""
    yield "\n## The installation\n\n" + _TABLE
    yield from (_row(value) for value in values if len(value.path) == 1 and not value.is_section)
    for section in (value for value in values if value.is_section and len(value.path) == 1):
        yield f"\n## {section.name}\n\n"
        if section.text:
            yield f"{section.text}\n\n"
        yield _TABLE
        inner = (value for value in values if value.path[0] == section.path[0] and not value.is_section)
        yield from map(_row, inner)


def _row(value: Value) -> str:
    kind = value.type or _WORDS[type(value.default)]
    text = value.text.replace("|", "\\|").replace("<", "&lt;")
    return f"| `{value.name}` | {kind} | {text} | `{json.dumps(value.default)}` |\n"
