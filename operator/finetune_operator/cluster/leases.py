"""The calls of leader election. They have a connection of their own, so that no renewal waits behind other calls."""

from typing import Any, Self

from kubernetes.aio import client

from finetune_operator.cluster.connection import Connection, credentials, path_to
from finetune_operator.views.metadata import Raw

API = "coordination.k8s.io/v1"


class Leases(Connection):
    """One Lease, and what its namespace tells about other operators. Writes do not pass the gate: they open it."""

    def __init__(self, api: client.ApiClient, namespace: str, name: str) -> None:
        super().__init__(api)
        self.namespace, self.name = namespace, name

    @classmethod
    async def connect(cls, namespace: str, name: str) -> Self:
        """With the operator's credentials."""
        return cls(client.ApiClient(await credentials()), namespace, name)

    @property
    def title(self) -> str:
        return f"Lease {self.namespace}/{self.name}"

    async def get(self, timeout: float) -> Raw | None:
        return await self._get(path_to(API, "leases", self.namespace, self.name), timeout)

    async def create(self, spec: Raw, owners: list[Raw], timeout: float) -> Raw:
        """Raises ApiError 409 if it exists."""
        meta: dict[str, Any] = {"namespace": self.namespace, "name": self.name, "ownerReferences": owners}
        body = {"apiVersion": API, "kind": "Lease", "metadata": meta, "spec": spec}
        return await self._call("POST", path_to(API, "leases", self.namespace), body=body, timeout=timeout)

    async def replace(self, lease: Raw, spec: Raw, timeout: float) -> Raw:
        """Raises ApiError 409 if it has changed since it was read."""
        body = {**lease, "apiVersion": API, "kind": "Lease", "spec": spec}
        path = path_to(API, "leases", self.namespace, self.name)
        return await self._call("PUT", path, body=body, timeout=timeout)

    async def replica_sets(self, selector: str) -> list[Raw]:
        return await self._list(path_to("apps/v1", "replicasets", self.namespace), {"labelSelector": selector})

    async def pods(self, selector: str) -> list[Raw]:
        return await self._list(path_to("v1", "pods", self.namespace), {"labelSelector": selector})
