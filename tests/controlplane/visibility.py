"""Kueue's visibility API, which tells places in queues: a server of the API that the API server asks for its clients.

Only tests that need it have it. While it is registered and does not answer, namespaces are not deleted.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import yaml

from tests.cluster import binaries, go
from tests.controlplane.kueue import NAMESPACE, Kueue
from tests.kube import Kube, Object, until

SERVICE = "visibility-server"


@contextlib.contextmanager
def visible(queues: Kueue) -> Iterator[None]:
    """While this lasts, Kueue serves the API in each version of its release."""
    folder = go.source(binaries.MODULES / "kueue", "sigs.k8s.io/kueue") / "config" / "components" / "visibility"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    registered: list[Object] = [yaml.safe_load(file.read_text()) for file in sorted(folder.glob("apiservice_*.yaml"))]
    for manifest in registered:
        manifest["spec"]["service"] = {"name": SERVICE, "namespace": NAMESPACE, "port": port}
    # Kueue runs beside the API server, not in a pod.
    service: Object = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": SERVICE}}
    service["spec"] = {"type": "ExternalName", "externalName": "localhost"}
    queues.stop()
    queues.start(featureGates={}, visibilityServer={"bindAddress": "127.0.0.1", "bindPort": port})
    queues.kube.apply(service, NAMESPACE)
    try:
        for manifest in registered:
            queues.kube.apply(manifest)
        names = [manifest["metadata"]["name"] for manifest in registered]
        until("places in queues are served", lambda: all(_available(queues.kube, name) for name in names))
        yield
    finally:
        for manifest in registered:
            queues.kube.delete("APIService", manifest["metadata"]["name"])
        queues.kube.delete("Service", SERVICE, NAMESPACE)
        queues.stop()
        queues.start()


def _available(kube: Kube, name: str) -> bool:
    conditions = kube.get("APIService", name).get("status", {}).get("conditions", [])
    return any(found["type"] == "Available" and found["status"] == "True" for found in conditions)
