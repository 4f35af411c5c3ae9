"""The identity of the trainer's pods: a ServiceAccount that may write the status of FineTuneJobs and nothing else.

The role with this right is the chart's. An installation for the whole cluster has a ClusterRole, an installation for
some namespaces has a Role in each of them.

The chart's admission policy restricts each pod to its own job, attempt and fields, by the name of the pod. The objects
are shared by all jobs of a namespace, so they have no owner; uninstalling removes them (see the README).
"""

from typing import Any

from finetune_operator.names import LABEL_MANAGED, MANAGER, SERVICE_ACCOUNT
from finetune_operator.settings import Settings

_LABELS = {LABEL_MANAGED: "true", "app.kubernetes.io/managed-by": MANAGER, "app.kubernetes.io/part-of": MANAGER}


def service_account(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": SERVICE_ACCOUNT, "namespace": namespace, "labels": _LABELS},
    }


def binding_name(account: str, settings: Settings) -> str:
    """One binding for each account, so that none is shared between writers. Bindings to a Role have names of their own,
    because nobody can change the role of a binding: an installation may be changed from the one scope to the other."""
    if settings.watch_namespaces:
        return f"{SERVICE_ACCOUNT}:{account}"
    return SERVICE_ACCOUNT if account == SERVICE_ACCOUNT else f"{SERVICE_ACCOUNT}-{account}"


def role_binding(namespace: str, account: str, settings: Settings) -> dict[str, Any]:
    kind = "Role" if settings.watch_namespaces else "ClusterRole"
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": binding_name(account, settings), "namespace": namespace, "labels": _LABELS},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": settings.trainer_role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }
