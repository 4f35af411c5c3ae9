"""What a policy of the cluster puts into the pods of a job, such as the container of a service mesh.

The controlplane and e2e tiers use the API server's own mutating policies for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.kube import Kube, Object, until

JOB = "finetune-operator.io/job"


def container(name: str, image: str, **fields: Any) -> Object:
    """A container that a namespace with the restricted Pod Security level admits."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {"name": name, "image": image, "securityContext": security, **fields}


@contextmanager
def injected(
    kube: Kube, namespace: str, job: str, first: Object | None = None, init: Object | None = None
) -> Iterator[None]:
    """While this lasts, all new pods of a job have one more container, before all others, or an init container."""
    parts: dict[str, Any] = {}
    if first is not None:
        parts["containers/0"] = first
    if init is not None:
        parts["initContainers"] = [init]

    def changed(spec: Object) -> bool:
        return len(spec["containers"]) + len(spec.get("initContainers", [])) > 1

    with _added(kube, namespace, f"inject-{namespace}-{job}", {JOB: job}, parts, changed):
        yield


@contextmanager
def gated(kube: Kube, namespace: str, labels: dict[str, str], gate: str) -> Iterator[None]:
    """While this lasts, no node is looked for for new pods with these labels, until somebody takes the gate away."""
    parts = {"schedulingGates": [{"name": gate}]}
    with _added(kube, namespace, f"gate-{namespace}", labels, parts, lambda spec: "schedulingGates" in spec):
        yield


@contextmanager
def _added(
    kube: Kube,
    namespace: str,
    name: str,
    labels: dict[str, str],
    parts: dict[str, Any],
    changed: Callable[[Object], bool],
) -> Iterator[None]:
    """While this lasts, the API server adds these parts, by their paths, to the specs of new pods with these labels."""
    patches = [f'JSONPatch{{op: "add", path: "/spec/{path}", value: {_cel(part)}}}' for path, part in parts.items()]
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    spec: Object = {
        "matchConstraints": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "objectSelector": {"matchLabels": labels},
            "resourceRules": [rule],
        },
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": f"[{', '.join(patches)}]"}}],
    }
    head = {"apiVersion": "admissionregistration.k8s.io/v1beta1", "metadata": {"name": name}}
    kube.create({**head, "kind": "MutatingAdmissionPolicy", "spec": spec})
    kube.create({**head, "kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": name}})
    try:
        until("the policy changes pods", lambda: changed(_probe(kube, namespace, labels)), timeout=60)
        yield
    finally:
        kube.delete("MutatingAdmissionPolicyBinding", name)
        kube.delete("MutatingAdmissionPolicy", name)


def _probe(kube: Kube, namespace: str, labels: dict[str, str]) -> Object:
    """The spec that such a pod would get now: a policy takes effect some time after it is stored."""
    secure = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    probe: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "probe-", "labels": labels},
        "spec": {"securityContext": secure, "containers": [container("probe", "probe")]},
    }
    made: Object = kube.create(probe, namespace, dry_run=True)["spec"]
    return made


def _cel(value: Any) -> str:
    """A value as a CEL literal. CEL wants equal types in a literal, so each part is of the type dyn."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: dyn({_cel(part)})" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(f"dyn({_cel(part)})" for part in value) + "]"
    return json.dumps(value)
