"""A Kubernetes client for tests: any kind, any verb, any user.

Used by the controlplane and e2e tiers. The official client provides TLS and the kubeconfig. Paths are built here, so
that tests read like the API. An error is an `ApiError` with the code and message of the server. Only `until` waits: it
polls until an expectation of a test is true.
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
ANSWER_SECONDS = 90
"""Patience with the API server: on a busy machine it takes half a minute for a big custom resource definition."""
PATIENCE = 60.0
"""Patience with what a test waits for, where it does not say another."""
LONGEST_PAUSES = 4
"""How many times as long as the first pause of `until` its longest is."""

# kind -> (path prefix of its API group, plural, whether it is namespaced)
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
    "ReplicaSet": ("apis/apps/v1", "replicasets", True),
    "Lease": ("apis/coordination.k8s.io/v1", "leases", True),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets", True),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies", True),
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
    "MutatingAdmissionPolicy": ("apis/admissionregistration.k8s.io/v1beta1", "mutatingadmissionpolicies", False),
    "MutatingAdmissionPolicyBinding": (
        "apis/admissionregistration.k8s.io/v1beta1",
        "mutatingadmissionpolicybindings",
        False,
    ),
    "ValidatingWebhookConfiguration": (
        "apis/admissionregistration.k8s.io/v1",
        "validatingwebhookconfigurations",
        False,
    ),
    "MutatingWebhookConfiguration": (
        "apis/admissionregistration.k8s.io/v1",
        "mutatingwebhookconfigurations",
        False,
    ),
    "APIService": ("apis/apiregistration.k8s.io/v1", "apiservices", False),
    "Workload": ("apis/kueue.x-k8s.io/v1beta2", "workloads", True),
    "LocalQueue": ("apis/kueue.x-k8s.io/v1beta2", "localqueues", True),
    "ClusterQueue": ("apis/kueue.x-k8s.io/v1beta2", "clusterqueues", False),
    "ResourceFlavor": ("apis/kueue.x-k8s.io/v1beta2", "resourceflavors", False),
    "WorkloadPriorityClass": ("apis/kueue.x-k8s.io/v1beta2", "workloadpriorityclasses", False),
    "Application": ("apis/argoproj.io/v1alpha1", "applications", True),
    "AppProject": ("apis/argoproj.io/v1alpha1", "appprojects", True),
    "SubjectAccessReview": ("apis/authorization.k8s.io/v1", "subjectaccessreviews", False),
}


class ApiError(Exception):
    """The API server refused a request."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Kube:
    """A client with one identity at one API server."""

    def __init__(self, kubeconfig: Path | str, headers: Mapping[str, str] | None = None) -> None:
        self.kubeconfig = Path(kubeconfig)
        self._client = config.new_client_from_config(config_file=str(kubeconfig))
        self._headers = dict(headers or {})

    def call(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", **query: Any
    ) -> Any:
        """Send any request. Returns the decoded answer. Raises ApiError unless the code is 2xx."""
        host = self._client.configuration.host.rstrip("/")
        parameters = urlencode({key: value for key, value in query.items() if value not in (None, "", False)})
        answer = self._client.rest_client.pool_manager.request(
            method,
            f"{host}/{path}" + (f"?{parameters}" if parameters else ""),
            body=None if body is None else json.dumps(body),
            headers={"Content-Type": content_type, "Accept": "application/json", **self._headers},
            timeout=ANSWER_SECONDS,
            retries=False,
        )
        text = answer.data.decode()
        decoded = json.loads(text) if text.startswith("{") else text
        if answer.status >= 300:
            raise ApiError(answer.status, decoded["message"] if isinstance(decoded, dict) else text)
        return decoded

    def stream(self, path: str, **query: Any) -> Any:
        """The open answer of a watch: an iterable of lines that can be closed."""
        url = f"{self._client.configuration.host.rstrip('/')}/{path}?{urlencode(query)}"
        pool = self._client.rest_client.pool_manager
        return pool.request("GET", url, headers=self._headers, preload_content=False, retries=False)

    def create(self, manifest: Object, namespace: str | None = None, *, dry_run: bool = False) -> Object:
        """POST, like `kubectl create`."""
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
        """Server-side apply, with force. part="status" applies the subresource."""
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
        """JSON merge patch. null removes a field."""
        return self._answer("PATCH", _path(kind, namespace, name, part), body, "application/merge-patch+json")

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        """The object. Raises ApiError 404 if it does not exist."""
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
        """All objects of a kind, in a namespace or in all namespaces."""
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
        """DELETE. A missing object is not an error."""
        options: Object = {"propagationPolicy": propagation}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            self._answer("DELETE", _path(kind, namespace, name), options)
        except ApiError as error:
            if error.code != 404:
                raise

    def as_user(self, user: str, groups: Sequence[str] = (), extra: Mapping[str, str] | None = None) -> Kube:
        """The same server as another user, by impersonation."""
        # Several groups would need a repeated header, which a dictionary cannot hold. One group is enough here.
        headers = {"Impersonate-User": user, **({"Impersonate-Group": groups[0]} if groups else {})}
        headers |= {f"Impersonate-Extra-{quote(key, safe='')}": value for key, value in (extra or {}).items()}
        return Kube(self.kubeconfig, headers)

    def with_headers(self, headers: Mapping[str, str]) -> Kube:
        """The same server and identity, with more headers."""
        return Kube(self.kubeconfig, {**self._headers, **headers})

    def as_account(self, name: str, namespace: str) -> Kube:
        """The same server as a ServiceAccount, outside any pod."""
        return self.as_user(f"system:serviceaccount:{namespace}:{name}", [f"system:serviceaccounts:{namespace}"])

    def as_pod(self, pod: str, namespace: str, account: str = "finetune-trainer") -> Kube:
        """The same server as a pod that uses its mounted token."""
        user = f"system:serviceaccount:{namespace}:{account}"
        return self.as_user(
            user, [f"system:serviceaccounts:{namespace}"], {"authentication.kubernetes.io/pod-name": pod}
        )

    def _answer(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json", **query: Any
    ) -> Object:
        answer: Object = self.call(method, path, body, content_type, **query)
        return answer


def until(what: str, look: Callable[[], T | None], timeout: float = PATIENCE, every: float = 0.1) -> T:
    """Poll `look` until its answer is true, at pauses that grow. Returns the answer. Fails after `timeout` and names
    `what`."""
    end, pause = time.monotonic() + timeout, every
    while not (answer := look()):
        if time.monotonic() > end:
            raise AssertionError(f"timed out after {timeout:.0f} s while waiting for this: {what}")
        time.sleep(pause)
        # Whoever polls takes CPU from what it waits for.
        pause = min(1.2 * pause, LONGEST_PAUSES * every)
    return answer


def _of(manifest: Object, namespace: str | None, name: str = "", part: str = "") -> str:
    return _path(manifest["kind"], namespace or manifest["metadata"].get("namespace"), name, part)


def _path(kind: str, namespace: str | None, name: str = "", part: str = "") -> str:
    prefix, plural, namespaced = KINDS[kind]
    place = f"namespaces/{namespace}/" if namespaced and namespace else ""
    return "/".join(filter(None, [prefix, f"{place}{plural}", name, part]))
