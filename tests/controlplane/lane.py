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

from tests import chart
from tests.controlplane import operator_process
from tests.controlplane.fault_proxy import FaultProxy
from tests.controlplane.operator_process import OperatorProcess
from tests.kube import Kube

LEASES = "operator-leases"
"""Namespace of the Leases of lanes: operators that do not see each other do not elect each other."""


def allow_leases(kube: Kube) -> None:
    """Make the namespace. The operator has the rights there that the chart gives it to its own Lease."""
    rbac, name = "rbac.authorization.k8s.io", "lanes"
    rules = [
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
        {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["list"]},
    ]
    subject = {"kind": "ServiceAccount", "name": chart.RELEASE, "namespace": chart.NAMESPACE}
    role = {"apiGroup": rbac, "kind": "Role", "name": name}
    head: dict[str, Any] = {"apiVersion": f"{rbac}/v1", "metadata": {"name": name}}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEASES}})
    kube.apply({**head, "kind": "Role", "rules": rules}, LEASES)
    kube.apply({**head, "kind": "RoleBinding", "roleRef": role, "subjects": [subject]}, LEASES)


def new_lease(kube: Kube) -> str:
    """A Lease that its last holder gave back. Returns its name."""
    spec = {"holderIdentity": "", "leaseDurationSeconds": 1}
    meta = {"generateName": "lane-"}
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}
    name: str = kube.create(lease, LEASES)["metadata"]["name"]
    return name


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
    own = {"lease_namespace": LEASES, "lease_name": new_lease(kube)}
    with FaultProxy(admin["server"], ca, namespace) as proxy:
        config = operator_process.kubeconfig(kube, home / "kubeconfig", proxy.url)
        process = OperatorProcess(config, deployed, home / "log", **(own | settings))
        proxy.crash = process.kill
        try:
            yield Lane(process, proxy)
        finally:
            process.kill()
