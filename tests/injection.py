"""Containers that a policy of the cluster puts into the pods of a job, as a service mesh does: the controlplane and e2e
tiers use the API server's own mutating policies for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    name = f"inject-{namespace}-{job}"
    patches = []
    if first is not None:
        patches.append(f'JSONPatch{{op: "add", path: "/spec/containers/0", value: {_cel(first)}}}')
    if init is not None:
        patches.append(f'JSONPatch{{op: "add", path: "/spec/initContainers", value: {_cel([init])}}}')
    selector = {"matchLabels": {JOB: job}}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    spec: Object = {
        "matchConstraints": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "objectSelector": selector,
            "resourceRules": [rule],
        },
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": f"[{', '.join(patches)}]"}}],
    }
    head = {"apiVersion": "admissionregistration.k8s.io/v1beta1", "metadata": {"name": name}}
    kube.create({**head, "kind": "MutatingAdmissionPolicy", "spec": spec})
    kube.create({**head, "kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": name}})
    try:
        until("the policy changes pods", lambda: _changes(kube, namespace, job), timeout=60)
        yield
    finally:
        kube.delete("MutatingAdmissionPolicyBinding", name)
        kube.delete("MutatingAdmissionPolicy", name)


def _changes(kube: Kube, namespace: str, job: str) -> bool:
    """A policy takes effect some time after it is stored."""
    secure = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    probe: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "probe-", "labels": {JOB: job}},
        "spec": {"securityContext": secure, "containers": [container("probe", "probe")]},
    }
    spec = kube.create(probe, namespace, dry_run=True)["spec"]
    return len(spec["containers"]) + len(spec.get("initContainers", [])) > 1


def _cel(value: Any) -> str:
    """A value as a CEL literal. CEL wants equal types in a literal, so each part is of the type dyn."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: dyn({_cel(part)})" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(f"dyn({_cel(part)})" for part in value) + "]"
    return json.dumps(value)
