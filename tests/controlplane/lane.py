"""An operator of its own for a namespace, behind a fault proxy: for tests that break or restart it.

The proxy shows it that namespace alone, so lanes can stand beside each other. Not beside the module's shared operator,
which sees every namespace.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.controlplane import operator_process
from tests.controlplane.fault_proxy import FaultProxy
from tests.controlplane.operator_process import OperatorProcess
from tests.kube import Kube


@dataclass(frozen=True)
class Lane:
    """The two."""

    operator: OperatorProcess
    proxy: FaultProxy


@contextlib.contextmanager
def lane(kube: Kube, deployed: dict[str, str], home: Path, namespace: str = "", **settings: Any) -> Iterator[Lane]:
    """Without a namespace the operator sees them all. It is not started yet."""
    admin = yaml.safe_load(kube.kubeconfig.read_text())["clusters"][0]["cluster"]
    ca = base64.b64decode(admin["certificate-authority-data"]).decode()
    home.mkdir(parents=True, exist_ok=True)
    with FaultProxy(admin["server"], ca, namespace) as proxy:
        config = operator_process.kubeconfig(kube, home / "kubeconfig", proxy.url)
        process = OperatorProcess(config, deployed, home / "log", **settings)
        proxy.crash = process.kill
        try:
            yield Lane(process, proxy)
        finally:
            process.kill()
