"""What the operator writes.

Child jobs, Services, Events and claims are created by POST; everything else is applied server-side, and only if it
differs.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import aiohttp
from finetune_api.job import API_VERSION, KIND, PLURAL
from finetune_api.status import Progress
from kubernetes.aio import client

from finetune_operator.cluster.connection import TIMEOUT_SECONDS, credentials, path_to
from finetune_operator.cluster.errors import ApiError
from finetune_operator.cluster.reads import Reads
from finetune_operator.gate import Gate
from finetune_operator.names import LABEL_JOB, MANAGER
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Raw
from finetune_operator.views.service import ServiceView

_PLURALS = {
    "FineTuneJob": PLURAL,
    "Job": "jobs",
    "Pod": "pods",
    "Event": "events",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
    "RoleBinding": "rolebindings",
    "PersistentVolumeClaim": "persistentvolumeclaims",
}

_NO_PROGRESS = dict.fromkeys(Progress.model_json_schema(by_alias=True)["properties"].keys() - {"curves"})
"""Each field as null: a merge patch removes what the new progress does not set, except for the curves."""


class Cluster(Reads):
    """Everything that the operator asks the API server for. Every call but a GET passes the gate twice: before it is
    prepared, and when its connection is there, before its first byte is sent."""

    def __init__(self, api: client.ApiClient, gate: Gate) -> None:
        super().__init__(api)
        self.gate = gate

    @classmethod
    async def connect(cls, gate: Gate) -> Self:
        """With the operator's credentials."""
        settings = await credentials()
        settings.trace_configs = [_at_the_last_moment(gate)]
        return cls(client.ApiClient(settings), gate)

    async def apply_status(self, view: JobView, status: Raw) -> Raw:
        """Server-side apply of the operator's part of the status. The trainer's fields are not in it, so they stay
        the trainer's. Raises ApiError 409 if the job has changed since the view was made."""
        meta = {"name": view.name, "namespace": view.namespace, **_version(view)}
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "status": status}
        try:
            return await self._apply(path_to(API_VERSION, PLURAL, *view.key) + "/status", body)
        except ApiError as error:
            if "field not declared in schema" not in str(error):
                raise
            advice = "The installed CRD is older than this operator. Install the CRD of the operator's chart."
            raise ApiError(error.status, f"{error.message.rstrip('. ')}. {advice}") from error

    async def set_progress(self, view: JobView, progress: Progress | None) -> Raw:
        """Replace status.progress, which is the trainer's, except for its curves: its next apply takes it over again.
        Server-side apply could only change the fields that the operator owns. Raises ApiError 409 if the job has
        changed since the view was made."""
        fields = progress.to_dict() if progress is not None else {}
        new = {**_NO_PROGRESS, **fields} if fields or view.has_curves else None
        body = {"metadata": _version(view), "status": {"progress": new}}
        path = path_to(API_VERSION, PLURAL, *view.key) + "/status"
        return await self._call("PATCH", path, {"fieldManager": MANAGER}, body, "application/merge-patch+json")

    async def create(self, manifest: Raw) -> Raw:
        """POST. An existing object with the same owner is returned as if it was created now. Raises ApiError 409 if the
        object belongs to somebody else."""
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        plural = _PLURALS[manifest["kind"]]
        try:
            return await self._call("POST", path_to(manifest["apiVersion"], plural, namespace), body=manifest)
        except ApiError as error:
            if error.status != 409 or not owners(manifest):
                raise
            existing = await self._get(path_to(manifest["apiVersion"], plural, namespace, name))
            if existing is None:
                raise
            if owners(existing) & owners(manifest):
                return existing
            title = f"A {manifest['kind']} named {name}"
            raise ApiError(409, f"{title} exists that does not belong to this job. Delete or rename it.") from error

    async def ensure(self, manifest: Raw) -> bool:
        """Apply the manifest if the object differs from it; True if it did."""
        meta = manifest["metadata"]
        path = path_to(manifest["apiVersion"], _PLURALS[manifest["kind"]], meta["namespace"], meta["name"])
        if _contains(await self._get(path) or {}, manifest):
            return False
        await self._apply(path, manifest)
        return True

    async def create_if_absent(self, manifest: Raw) -> None:
        """Create an object unless it exists; an existing object is never changed. Raises ApiError 409 if the existing
        object was not created for a FineTuneJob of this name, or is being deleted."""
        meta = manifest["metadata"]
        path = path_to(manifest["apiVersion"], _PLURALS[manifest["kind"]], meta["namespace"], meta["name"])
        existing = await self._get(path)
        if existing is None:
            await self._call("POST", path.rsplit("/", 1)[0], body=manifest)
            return
        if (existing["metadata"].get("labels") or {}).get(LABEL_JOB) != meta["labels"][LABEL_JOB]:
            why = "the operator did not create it. To use it, name it in spec.workspace.claimName"
            raise ApiError(409, f"{manifest['kind']} {meta['name']} exists, but {why}")
        if "deletionTimestamp" in existing["metadata"]:
            raise ApiError(409, f"{manifest['kind']} {meta['name']} is being deleted")

    async def delete_child_job(self, view: ChildJobView) -> None:
        """Delete a child job, its pods first. Raises ApiError 409 if it has changed since the view was made."""
        await self._delete(path_to("batch/v1", "jobs", view.key[0], view.name), view, "Foreground")

    async def delete_service(self, view: ServiceView) -> None:
        """Delete the Service of an attempt. Raises ApiError 409 if it has changed since the view was made."""
        await self._delete(path_to("v1", "services", view.key[0], view.name), view, "Background")

    @contextlib.contextmanager
    def _permit(self, method: str) -> Iterator[float]:
        if method == "GET":
            yield TIMEOUT_SECONDS
            return
        with self.gate.writing() as seconds:
            yield seconds

    async def _delete(self, path: str, view: ChildJobView | ServiceView, propagation: str) -> None:
        """An object that is gone already is deleted."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {"uid": view.uid, "resourceVersion": str(view.resource_version)},
        }
        try:
            await self._call("DELETE", path, body=body)
        except ApiError as error:
            if error.status != 404:
                raise

    async def _apply(self, path: str, body: Raw) -> Raw:
        query = {"fieldManager": MANAGER, "force": "true"}
        return await self._call("PATCH", path, query, body, "application/apply-patch+yaml")


def _version(view: JobView) -> Raw:
    """Makes a write conditional: the object and the version that the plan was made from. Another operator may have
    written since."""
    return {"uid": view.uid, "resourceVersion": str(view.resource_version)}


def _at_the_last_moment(gate: Gate) -> aiohttp.TraceConfig:
    """The gate as a hook of the HTTP client. A process may be paused while it waits for a connection."""
    hooks = aiohttp.TraceConfig()

    async def check(_session: object, _context: object, request: aiohttp.TraceRequestHeadersSentParams) -> None:
        if request.method != "GET":
            gate.check()

    # The client calls it before it writes the headers to the connection.
    hooks.on_request_headers_sent.append(check)
    return hooks


def owners(raw: Raw) -> set[str]:
    """The uids that own an object."""
    return {str(owner.get("uid")) for owner in raw["metadata"].get("ownerReferences") or []}


def _contains(actual: Any, desired: Any) -> bool:
    """Whether the actual object has every desired value. Fields that the server added do not matter."""
    if isinstance(desired, dict):
        return isinstance(actual, dict) and all(_contains(actual.get(key), value) for key, value in desired.items())
    if isinstance(desired, list):
        return isinstance(actual, list) and len(actual) == len(desired) and all(map(_contains, actual, desired))
    return bool(actual == desired)
