"""What the operator reads."""

from finetune_api.job import API_VERSION, PLURAL
from finetune_api.presets import CONFIG_MAP
from finetune_api.status import NOT_OBSERVED

from finetune_operator.cluster.connection import Connection, Pages, path_to
from finetune_operator.cluster.errors import ApiError
from finetune_operator.names import (
    INSTALLATION_ANNOTATION,
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_KIND,
    LABEL_WORKLOAD_JOB,
    MANAGED_SELECTOR,
    Kind,
)
from finetune_operator.views.metadata import Key, Raw, section

METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
EVERYWHERE = ""
"""Instead of a namespace: all of the cluster."""
KUEUE_VERSIONS = ("v1beta2", "v1beta1")
"""Kueue serves the first since 0.15. What is read here is the same in both."""
PLACES = 100
"""So many Workloads at the head of a queue are looked at for a place in it."""
RBAC = "rbac.authorization.k8s.io/v1"


class Reads(Connection):
    """See the module's docstring."""

    def list_jobs(self, namespace: str = EVERYWHERE) -> Pages:
        """Every FineTuneJob."""
        return self._pages(path_to(API_VERSION, PLURAL, namespace), {})

    async def new_jobs(self, namespace: str, limit: int) -> list[Raw]:
        """FineTuneJobs that no operator has looked at yet. Raises ApiError 400 if the CRD is an earlier release's."""
        query = {"fieldSelector": f"status.observedGeneration={NOT_OBSERVED}", "limit": str(limit)}
        page = await self._call("GET", path_to(API_VERSION, PLURAL, namespace), query)
        return list(page["items"])

    async def children_of(self, namespace: str, names: list[str]) -> tuple[list[Raw], list[Raw]]:
        """The child jobs and the pods of some FineTuneJobs of a namespace, as they are now."""
        query = {"labelSelector": f"{MANAGED_SELECTOR},{LABEL_JOB} in ({','.join(names)})"}
        pods, child_jobs = path_to("v1", "pods", namespace), path_to("batch/v1", "jobs", namespace)
        return await self._list(child_jobs, query), await self._list(pods, query)

    def list_child_jobs(self, namespace: str = EVERYWHERE) -> Pages:
        return self._pages(path_to("batch/v1", "jobs", namespace), {"labelSelector": MANAGED_SELECTOR})

    def list_pods(self, namespace: str = EVERYWHERE) -> Pages:
        return self._pages(path_to("v1", "pods", namespace), {"labelSelector": MANAGED_SELECTOR})

    def list_presets(self, namespace: str = EVERYWHERE) -> Pages:
        """The ConfigMaps with the presets of namespaces."""
        return self._pages(path_to("v1", "configmaps", namespace), {"fieldSelector": f"metadata.name={CONFIG_MAP}"})

    async def pods_of(self, key: Key, kind: Kind, attempt: int) -> list[Raw]:
        """The pods of an attempt as they are now; a watch may be late."""
        selector = f"{LABEL_JOB}={key[1]},{LABEL_KIND}={kind},{LABEL_ATTEMPT}={attempt}"
        return await self._list(path_to("v1", "pods", key[0]), {"labelSelector": selector})

    def list_events(self, namespace: str, selector: str, pages: int) -> Pages:
        """The events of a namespace that a field selector selects; at most so many pages."""
        return self._pages(path_to("v1", "events", namespace), {"fieldSelector": selector}, pages=pages)

    async def services_of(self, key: Key) -> list[Raw]:
        """The Services of all attempts of a job."""
        selector = f"{MANAGED_SELECTOR},{LABEL_JOB}={key[1]}"
        return await self._list(path_to("v1", "services", key[0]), {"labelSelector": selector})

    async def get_job(self, key: Key) -> Raw | None:
        return await self._get(path_to(API_VERSION, PLURAL, *key))

    async def get_child_job(self, namespace: str, name: str) -> Raw | None:
        return await self._get(path_to("batch/v1", "jobs", namespace, name))

    async def get_presets(self, namespace: str) -> Raw | None:
        """The ConfigMap of the namespace's presets, as it is now."""
        return await self._get(path_to("v1", "configmaps", namespace, CONFIG_MAP))

    async def get_claim(self, namespace: str, name: str) -> Raw | None:
        return await self._get(path_to("v1", "persistentvolumeclaims", namespace, name))

    async def workloads_of(self, namespace: str, job_uid: str) -> list[Raw]:
        """The Workloads that Kueue made for a Job. Raises ApiError with status 404 if the cluster has no Kueue."""
        query = {"labelSelector": f"{LABEL_WORKLOAD_JOB}={job_uid}"}
        *newer, oldest = (path_to(f"kueue.x-k8s.io/{version}", "workloads", namespace) for version in KUEUE_VERSIONS)
        for path in newer:
            try:
                return await self._list(path, query)
            except ApiError as error:
                if error.status != 404:
                    raise
        return await self._list(oldest, query)

    async def queue_head(self, namespace: str, queue: str, version: str) -> Raw:
        """The first Workloads of a LocalQueue that wait; empty if Kueue's visibility API is not served, or not to the
        operator."""
        path = path_to(f"visibility.kueue.x-k8s.io/{version}", "localqueues", namespace, queue)
        try:
            return await self._call("GET", f"{path}/pendingworkloads", {"limit": str(PLACES)})
        except ApiError:
            return {}

    async def namespaces_with_account(self, name: str) -> set[str]:
        """The namespaces that have a ServiceAccount of this name; only metadata is read."""
        query = {"fieldSelector": f"metadata.name={name}"}
        accounts = await self._list(path_to("v1", "serviceaccounts"), query, METADATA_ONLY)
        return {str(account["metadata"]["namespace"]) for account in accounts}

    async def installation_of(self, role: str, namespace: str = EVERYWHERE) -> str:
        """The installation that the Role, or the ClusterRole, of the training pods names. Empty: it names none, or it
        does not exist."""
        plural = "roles" if namespace else "clusterroles"
        return _installation(await self._get(path_to(RBAC, plural, namespace, role)) or {})

    async def installations(self, role: str) -> dict[str, str]:
        """The installation that the Role of the training pods names, for each namespace with such a Role."""
        query = {"fieldSelector": f"metadata.name={role}"}
        found = await self._list(path_to(RBAC, "roles"), query, METADATA_ONLY)
        named = {str(raw["metadata"]["namespace"]): _installation(raw) for raw in found}
        return {namespace: name for namespace, name in named.items() if name}

    async def node_labels(self, selector: str) -> list[dict[str, str]]:
        """The labels of the nodes that match; only the nodes' metadata is read."""
        nodes = await self._list(path_to("v1", "nodes"), {"labelSelector": selector}, METADATA_ONLY)
        return [node["metadata"].get("labels") or {} for node in nodes]


def _installation(role: Raw) -> str:
    return str(section(section(role, "metadata"), "annotations").get(INSTALLATION_ANNOTATION, ""))
