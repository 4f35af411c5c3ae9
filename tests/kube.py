"""A Kubernetes client for tests: any kind, any verb, as anybody.

Used by the controlplane and e2e tiers. The official client brings TLS and the kubeconfig; paths are made here, so that
tests read like the API. Errors are `ApiError` with the code and the server's own words. Nothing here waits: `until`
does, for whatever a test expects to come true.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from kubernetes import config

Object = dict[str, Any]
T = TypeVar("T")

# kind -> (prefix of its API group's paths, plural, whether it lives in a namespace)
KINDS: dict[str, tuple[str, str, bool]] = {
    "FineTuneJob": ("apis/finetune-operator.io/v1alpha1", "finetunejobs", True),
    "Job": ("apis/batch/v1", "jobs", True),
    "Pod": ("api/v1", "pods", True),
    "Service": ("api/v1", "services", True),
    "ServiceAccount": ("api/v1", "serviceaccounts", True),
    "Secret": ("api/v1", "secrets", True),
    "ConfigMap": ("api/v1", "configmaps", True),
    "Event": ("api/v1", "events", True),
    "ResourceQuota": ("api/v1", "resourcequotas", True),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims", True),
    "Namespace": ("api/v1", "namespaces", False),
    "Node": ("api/v1", "nodes", False),
    "Deployment": ("apis/apps/v1", "deployments", True),
    "Role": ("apis/rbac.authorization.k8s.io/v1", "roles", True),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings", True),
    "ClusterRole": ("apis/rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": ("apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    "CustomResourceDefinition": ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions", False),
    "ValidatingAdmissionPolicy": ("apis/admissionregistration.k8s.io/v1", "validatingadmissionpolicies", False),
    "ValidatingAdmissionPolicyBinding": (
        "apis/admissionregistration.k8s.io/v1",
        "validatingadmissionpolicybindings",
        False,
    ),
    "SubjectAccessReview": ("apis/authorization.k8s.io/v1", "subjectaccessreviews", False),
}


class ApiError(Exception):
    """The API server said no."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Kube:
    """One identity at one API server."""

    def __init__(self, kubeconfig: Path | str, headers: Mapping[str, str] | None = None) -> None:
        self.kubeconfig = Path(kubeconfig)
        self._client = config.new_client_from_config(config_file=str(kubeconfig))
        self._headers = dict(headers or {})

    def call(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", **query: Any
    ) -> Any:
        """Any request; the decoded answer. Raises ApiError unless it is a 2xx."""
        host = self._client.configuration.host.rstrip("/")
        asked = urlencode({key: value for key, value in query.items() if value not in (None, "", False)})
        answer = self._client.rest_client.pool_manager.request(
            method,
            f"{host}/{path}" + (f"?{asked}" if asked else ""),
            body=None if body is None else json.dumps(body),
            headers={"Content-Type": content_type, "Accept": "application/json", **self._headers},
            timeout=30,
            retries=False,
        )
        text = answer.data.decode()
        decoded = json.loads(text) if text.startswith("{") else text
        if answer.status >= 300:
            raise ApiError(answer.status, decoded["message"] if isinstance(decoded, dict) else text)
        return decoded

    def create(self, manifest: Object, namespace: str | None = None, *, dry_run: bool = False) -> Object:
        """POST, as `kubectl create`."""
        return self._answer("POST", _of(manifest, namespace), manifest, dryRun="All" if dry_run else "")

    def apply(
        self,
        manifest: Object,
        namespace: str | None = None,
        *,
        manager: str = "test",
        part: str = "",
        dry_run: bool = False,
    ) -> Object:
        """Server-side apply, with force; part="status" for the subresource."""
        path = _of(manifest, namespace, manifest["metadata"]["name"], part)
        return self._answer(
            "PATCH",
            path,
            manifest,
            "application/apply-patch+yaml",
            fieldManager=manager,
            force="true",
            fieldValidation="Strict",
            dryRun="All" if dry_run else "",
        )

    def patch(self, kind: str, name: str, body: Object, namespace: str | None = None, *, part: str = "") -> Object:
        """JSON merge patch: null removes a field."""
        return self._answer("PATCH", _path(kind, namespace, name, part), body, "application/merge-patch+json")

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        """The object; ApiError 404 when there is none."""
        return self._answer("GET", _path(kind, namespace, name))

    def find(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """The object, or None."""
        try:
            return self.get(kind, name, namespace)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def list(self, kind: str, namespace: str | None = None, labels: str = "") -> list[Object]:
        """All of a kind, in one namespace or in all."""
        items: list[Object] = self._answer("GET", _path(kind, namespace), labelSelector=labels)["items"]
        return items

    def delete(
        self,
        kind: str,
        name: str,
        namespace: str | None = None,
        *,
        propagation: str = "Background",
        grace: int | None = None,
    ) -> None:
        """DELETE; that there is nothing to delete is fine."""
        options: Object = {"propagationPolicy": propagation}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            self._answer("DELETE", _path(kind, namespace, name), options)
        except ApiError as error:
            if error.code != 404:
                raise

    def as_user(self, user: str, groups: Sequence[str] = (), extra: Mapping[str, str] | None = None) -> Kube:
        """The same server as somebody else, by impersonation."""
        # The header of several groups would have to be repeated, which no dictionary can; one is enough here.
        headers = {"Impersonate-User": user, **({"Impersonate-Group": groups[0]} if groups else {})}
        headers |= {f"Impersonate-Extra-{quote(key, safe='')}": value for key, value in (extra or {}).items()}
        return Kube(self.kubeconfig, headers)

    def as_account(self, name: str, namespace: str) -> Kube:
        """As a ServiceAccount, outside of any pod."""
        return self.as_user(f"system:serviceaccount:{namespace}:{name}", [f"system:serviceaccounts:{namespace}"])

    def as_pod(self, pod: str, namespace: str, account: str = "finetune-trainer") -> Kube:
        """As a pod, the way the API server sees one that uses its mounted token."""
        user = f"system:serviceaccount:{namespace}:{account}"
        return self.as_user(
            user, [f"system:serviceaccounts:{namespace}"], {"authentication.kubernetes.io/pod-name": pod}
        )

    def _answer(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json", **query: Any
    ) -> Object:
        answer: Object = self.call(method, path, body, content_type, **query)
        return answer


def until(what: str, look: Callable[[], T | None], timeout: float = 30.0, every: float = 0.1) -> T:
    """Look again and again until the answer is true; the answer. Fails with `what` was waited for."""
    end = time.monotonic() + timeout
    while not (seen := look()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout:.0f} s in vain: {what}")
        time.sleep(every)
    return seen


def _of(manifest: Object, namespace: str | None, name: str = "", part: str = "") -> str:
    return _path(manifest["kind"], namespace or manifest["metadata"].get("namespace"), name, part)


def _path(kind: str, namespace: str | None, name: str = "", part: str = "") -> str:
    prefix, plural, namespaced = KINDS[kind]
    place = f"namespaces/{namespace}/" if namespaced and namespace else ""
    return "/".join(filter(None, [prefix, f"{place}{plural}", name, part]))
