"""What every test of this tier gets: the chart as the real helm renders it. It needs no cluster.

Values are written as `helm --set-json` takes them: {"trainer.allowCpu": True}.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart import CHART, NAMESPACE, RELEASE, HelmError
from tests.cluster import binaries
from tests.kube import Object

Values = dict[str, Any]
Text = Callable[..., str]
Objects = Callable[..., list[Object]]


@pytest.fixture(scope="session")
def helm() -> Path:
    """The program."""
    binaries.ensure(("helm",))
    return binaries.path("helm")


@pytest.fixture(scope="session")
def text(helm: Path) -> Text:
    """Renders values to text, the same values only once. Raises HelmError with the message of helm."""
    rendered: dict[tuple[str, ...], str | HelmError] = {}

    def render(values: Values | None = None, *flags: str, chart: Path = CHART) -> str:
        sets = [
            part for name, value in (values or {}).items() for part in ("--set-json", f"{name}={json.dumps(value)}")
        ]
        command = [str(helm), "template", RELEASE, str(chart), "--namespace", NAMESPACE, *sets, *flags]
        key = tuple(command)
        if key not in rendered:
            done = subprocess.run(command, capture_output=True, text=True)
            rendered[key] = HelmError(done.stdout + done.stderr) if done.returncode else done.stdout
        found = rendered[key]
        if isinstance(found, HelmError):
            raise found
        return found

    return render


@pytest.fixture(scope="session")
def objects(text: Text) -> Objects:
    """Renders values to manifests, without the CRD, which is long to read."""

    def render(values: Values | None = None, *flags: str) -> list[Object]:
        rendered = text({"crds.enabled": False, **(values or {})}, *flags)
        return [manifest for manifest in yaml.load_all(rendered, yaml.CSafeLoader) if manifest]

    return render


@pytest.fixture(scope="session")
def default(text: Text) -> str:
    """What the default values render."""
    return text()


def pick(manifests: list[Object], kind: str, name: str = "") -> Object:
    """The manifest of that kind. ``name`` is what follows the name of the release."""
    [found] = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"].removeprefix(RELEASE) == name]
    return found


def at(node: Any, where: str) -> Any:
    """A part of a manifest. In a list, a word is the name of an item, or its number. Raises KeyError."""
    for word in where.split():
        if isinstance(node, list):
            node = node[int(word)] if word.isdigit() else {item["name"]: item for item in node}[word]
        else:
            node = node[word]
    return node
