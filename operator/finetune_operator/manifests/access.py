"""Who the trainer's pods are: a ServiceAccount that may write the status of FineTuneJobs and nothing else.

Which job, which attempt and which fields is held by the chart's admission policy, by the name of the pod.
Namespace-wide and shared by its jobs, so without an owner; removing them is part of uninstalling (see the README).
"""

from typing import Any

from finetune_operator.names import LABEL_MANAGED, MANAGER, SERVICE_ACCOUNT

_LABELS = {LABEL_MANAGED: "true", "app.kubernetes.io/managed-by": MANAGER, "app.kubernetes.io/part-of": MANAGER}


def service_account(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": SERVICE_ACCOUNT, "namespace": namespace, "labels": _LABELS},
    }


def role_binding(namespace: str, account: str, cluster_role: str) -> dict[str, Any]:
    """One per account, so that no binding is shared between writers."""
    name = SERVICE_ACCOUNT if account == SERVICE_ACCOUNT else f"{SERVICE_ACCOUNT}-{account}"
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": namespace, "labels": _LABELS},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": cluster_role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }
