"""An installation of the chart for some namespaces: its objects, and its operator behind a proxy that counts requests.

The operator has the rights that the chart gives it there, and no others. Used by test_namespaces.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests import chart
from tests.controlplane import operator_process
from tests.controlplane.fault_proxy import FaultProxy
from tests.controlplane.lane import Lane
from tests.controlplane.operator_process import OperatorProcess
from tests.kube import Kube, Object

LEFT_OUT = ("CustomResourceDefinition", "Deployment")


def objects(helm: Path, system: str, *watched: str) -> list[Object]:
    """What the chart renders for a release in the namespace `system`."""
    return chart.render(helm, f"watchNamespaces={{{','.join(watched)}}}", namespace=system)


def namespace(kube: Kube, name: str = "") -> str:
    """Make a namespace. Returns its name."""
    meta = {"name": name} if name else {"generateName": "scope-"}
    made: str = kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})["metadata"]["name"]
    return made


def install(kube: Kube, manifests: list[Object], *only: str) -> None:
    """Apply the objects; with `only`, those in these namespaces."""
    for manifest in manifests:
        if manifest["kind"] not in LEFT_OUT and (not only or manifest["metadata"].get("namespace") in only):
            kube.apply(manifest)


def uninstall(kube: Kube, manifests: list[Object]) -> None:
    for manifest in manifests:
        if manifest["kind"] not in LEFT_OUT:
            kube.delete(manifest["kind"], manifest["metadata"]["name"], manifest["metadata"].get("namespace"))


@contextlib.contextmanager
def operator(kube: Kube, manifests: list[Object], home: Path) -> Iterator[Lane]:
    """The operator of an installation. It is not started yet."""
    admin = yaml.safe_load(kube.kubeconfig.read_text())["clusters"][0]["cluster"]
    ca = base64.b64decode(admin["certificate-authority-data"]).decode()
    environment = operator_process.deployed_environment(manifests)
    home.mkdir(parents=True)
    with FaultProxy(admin["server"], ca) as proxy:
        config = operator_process.kubeconfig(kube, home / "config", proxy.url, environment["FINETUNE_LEASE_NAMESPACE"])
        # The Deployment and its ReplicaSets are not there.
        process = OperatorProcess(config, environment, home / "log", operator_selector="")
        try:
            yield Lane(process, proxy)
        finally:
            process.kill()
