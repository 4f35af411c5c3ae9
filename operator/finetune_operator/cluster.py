"""The only module that calls the Kubernetes API. Plain dictionaries in and out, a time-out on every call.

Jobs, Events and claims are created by POST, everything else is applied server-side, and only when it differs. Uses the
asyncio client inside the official package for credentials, their renewal and TLS.
"""

import json
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from finetune_api.job import API_VERSION, KIND, PLURAL
from kubernetes.aio import client, config

from finetune_operator.names import LABEL_ATTEMPT, LABEL_JOB, LABEL_KIND, MANAGED_SELECTOR, MANAGER, Kind
from finetune_operator.observed import BatchView, JobView, Key, Raw

TIMEOUT_SECONDS = 20
PAGE = 500
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
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


class ApiError(Exception):
    """The API server said no, or nothing at all (status 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}" if status else message)
        self.status = status


class Cluster:
    """One connection pool to one API server."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls) -> Self:
        """As the pod that this runs in, else by KUBECONFIG or ~/.kube/config."""
        settings = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=settings)
        except config.ConfigException:
            await config.load_kube_config(client_configuration=settings)
        return cls(client.ApiClient(settings))

    async def close(self) -> None:
        await self._api.close()

    # What is there

    async def list_jobs(self) -> tuple[list[Raw], int]:
        """Every FineTuneJob, and the resourceVersion at which that was so."""
        return await self._list(_path(API_VERSION, PLURAL), {})

    async def list_batches(self) -> tuple[list[Raw], int]:
        return await self._list(_path("batch/v1", "jobs"), {"labelSelector": MANAGED_SELECTOR})

    async def list_pods(self) -> tuple[list[Raw], int]:
        return await self._list(_path("v1", "pods"), {"labelSelector": MANAGED_SELECTOR})

    async def pods_of(self, key: Key, kind: Kind, attempt: int) -> list[Raw]:
        """The pods of an attempt as they are now, not as a watch last showed them."""
        # Pods without the label are of kind train: != lists them, too.
        of_kind = f"{LABEL_KIND}=prepare" if kind == "prepare" else f"{LABEL_KIND}!=prepare"
        selector = f"{LABEL_JOB}={key[1]},{LABEL_ATTEMPT}={attempt},{of_kind}"
        items, _ = await self._list(_path("v1", "pods", key[0]), {"labelSelector": selector})
        return items

    async def events_about(self, namespace: str, uid: str) -> list[Raw]:
        items, _ = await self._list(_path("v1", "events", namespace), {"fieldSelector": f"involvedObject.uid={uid}"})
        return items

    async def get_job(self, key: Key) -> Raw | None:
        return await self._get(_path(API_VERSION, PLURAL, *key))

    async def get_batch(self, namespace: str, name: str) -> Raw | None:
        return await self._get(_path("batch/v1", "jobs", namespace, name))

    async def get_claim(self, namespace: str, name: str) -> Raw | None:
        return await self._get(_path("v1", "persistentvolumeclaims", namespace, name))

    async def node_labels(self, selector: str) -> list[dict[str, str]]:
        """The labels of the nodes that fit; nothing else of them is asked for."""
        items, _ = await self._list(_path("v1", "nodes"), {"labelSelector": selector}, METADATA_ONLY)
        return [item["metadata"].get("labels") or {} for item in items]

    # What changes it

    async def apply_status(self, view: JobView, status: Raw) -> Raw:
        """Server-side apply of our part of the status; the trainer's fields are not in it, so they stay its own."""
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": view.name, "namespace": view.namespace, "uid": view.uid},
            "status": status,
        }
        return await self._apply(_path(API_VERSION, PLURAL, *view.key) + "/status", body)

    async def create(self, manifest: Raw) -> Raw:
        """POST. What exists already with our uid as owner is returned as if made now; raises ApiError 409 if it is
        somebody else's."""
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        plural = _PLURALS[manifest["kind"]]
        try:
            return await self._call("POST", _path(manifest["apiVersion"], plural, namespace), body=manifest)
        except ApiError as error:
            if error.status != 409 or not owners(manifest):
                raise
            found = await self._get(_path(manifest["apiVersion"], plural, namespace, name))
            if found is not None and owners(found) & owners(manifest):
                return found
            raise

    async def ensure(self, manifest: Raw) -> None:
        """Make an object be as the manifest says, writing only if it isn't yet."""
        meta = manifest["metadata"]
        path = _path(manifest["apiVersion"], _PLURALS[manifest["kind"]], meta["namespace"], meta["name"])
        if not _contains(await self._get(path) or {}, manifest):
            await self._apply(path, manifest)

    async def make_once(self, manifest: Raw) -> None:
        """Make an object unless there is one, and never change it afterwards. Raises ApiError 409 when the one that is
        there was not made for this FineTuneJob (or a namesake before it), or is being deleted."""
        meta = manifest["metadata"]
        path = _path(manifest["apiVersion"], _PLURALS[manifest["kind"]], meta["namespace"], meta["name"])
        found = await self._get(path)
        if found is None:
            await self._call("POST", path.rsplit("/", 1)[0], body=manifest)
            return
        if (found["metadata"].get("labels") or {}).get(LABEL_JOB) != meta["labels"][LABEL_JOB]:
            made_by = "the operator did not make it: to use it, name it in spec.workspace.claimName"
            raise ApiError(409, f"{manifest['kind']} {meta['name']} exists, but {made_by}")
        if "deletionTimestamp" in found["metadata"]:
            raise ApiError(409, f"{manifest['kind']} {meta['name']} is being deleted")

    async def delete_batch(self, view: BatchView) -> None:
        """Delete exactly the Job that was seen, its pods first. Raises ApiError 409 if it has changed since."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground",
            "preconditions": {"uid": view.uid, "resourceVersion": str(view.resource_version)},
        }
        try:
            await self._call("DELETE", _path("batch/v1", "jobs", view.key[0], view.name), body=body)
        except ApiError as error:
            if error.status != 404:
                raise

    # How

    async def _list(self, path: str, query: dict[str, str], accept: str = "application/json") -> tuple[list[Raw], int]:
        items: list[Raw] = []
        token = ""
        while True:
            page = await self._call(
                "GET", path, {**query, "limit": str(PAGE), **({"continue": token} if token else {})}, accept=accept
            )
            items += page.get("items") or []
            token = page["metadata"].get("continue", "")
            if not token:
                return items, int(page["metadata"]["resourceVersion"])

    async def _get(self, path: str) -> Raw | None:
        try:
            return await self._call("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _apply(self, path: str, body: Raw) -> Raw:
        query = {"fieldManager": MANAGER, "force": "true"}
        return await self._call("PATCH", path, query, body, "application/apply-patch+yaml")

    async def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Raw | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Raw:
        headers = {"Accept": accept, "Content-Type": content_type}
        verb, url, headers, content, _ = await self._api.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        if query:
            url += "?" + urlencode(query)
        try:
            response = await self._api.call_api(verb, url, headers, content, _request_timeout=TIMEOUT_SECONDS)
            data = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"{method} {path}: {type(error).__name__}: {error}") from error
        if response.status >= 400:
            raise ApiError(response.status, f"{method} {path}: {_message(data)}")
        parsed: Any = json.loads(data)
        return dict(parsed)


def _path(api_version: str, plural: str, namespace: str = "", name: str = "") -> str:
    root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
    inside = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{inside}/{plural}" + (f"/{name}" if name else "")


def _message(data: bytes) -> str:
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return data[:300].decode(errors="replace").strip()


def owners(raw: Raw) -> set[str]:
    """The uids that own an object."""
    return {owner["uid"] for owner in raw["metadata"].get("ownerReferences") or []}


def _contains(found: Any, wanted: Any) -> bool:
    """Whether everything wanted is there; what the server added doesn't matter."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_contains(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_contains, found, wanted))
    return bool(found == wanted)
