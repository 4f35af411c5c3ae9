"""The pod of an attempt: restricted, told what to do by two annotations, and hard to disturb.

A prepare pod is the training pod without GPUs and with requests of its own. It is placed like the training pods, so
that a volume which is bound where it is first used is bound where the GPUs are.
"""

from typing import Any

from finetune_api.contract import JOB_FILE, AttemptFacts, ResolvedJob, canonical
from finetune_api.spec import FineTuneJobSpec

from finetune_operator.manifests.environment import environment
from finetune_operator.manifests.volumes import mounts, volumes
from finetune_operator.names import ATTEMPT_ANNOTATION, CONTAINER, JOB_ANNOTATION, SERVICE_ACCOUNT, child_labels
from finetune_operator.settings import Settings

USER = 10001
NODE_GONE_SECONDS = 60
"""How long a pod stays bound to a node that does not answer; Kubernetes' own default is five minutes."""


def pod_template(
    facts: AttemptFacts, spec: FineTuneJobSpec, resolved: ResolvedJob, image: str, settings: Settings
) -> dict[str, Any]:
    """The Job's pod template. The resolved job travels in an annotation, so that an attempt is one write."""
    wanted = spec.resources
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": wanted.service_account_name or SERVICE_ACCOUNT,
        # Also where the account says otherwise: without its token a run can report nothing.
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": facts.grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            # A recursive chown of a large workspace at each attempt would take longer than training.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [*_node_gone(), *(t.to_dict() for t in wanted.tolerations or [])],
        "containers": [_container(facts, spec, resolved, image, settings)],
        "volumes": volumes(resolved, wanted),
    }
    if facts.kind == "train" and resolved.runtime.nodes > 1:
        # The Job controller makes a pod's host name of Job and index: <job>-0.<job> is where the ranks meet.
        pod["subdomain"] = facts.job_name
        pod["topologySpreadConstraints"] = [_spread(facts)]
    pull_secrets = [*settings.trainer_pull_secrets, *(wanted.image_pull_secrets or [])]
    if pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in pull_secrets]
    node_selector = (spec.prepare.node_selector if facts.kind == "prepare" else None) or wanted.node_selector
    if node_selector:
        pod["nodeSelector"] = node_selector
    if wanted.affinity:
        pod["affinity"] = wanted.affinity.to_dict()
    if wanted.priority_class_name:
        pod["priorityClassName"] = wanted.priority_class_name
    return {
        "metadata": {
            "labels": child_labels(facts.name, spec.stage, facts.kind, facts.attempt),
            "annotations": {
                JOB_ANNOTATION: canonical(resolved.to_dict()),
                ATTEMPT_ANNOTATION: canonical(facts.to_dict()),
                # Else autoscalers move a run on its third day to save a node.
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
            },
        },
        "spec": pod,
    }


def _container(
    facts: AttemptFacts, spec: FineTuneJobSpec, resolved: ResolvedJob, image: str, settings: Settings
) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": settings.trainer_image_pull_policy,
        "args": [facts.kind, "--job", JOB_FILE],
        "env": environment(facts, spec, image, settings),
        "resources": _requests(facts, spec),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts(resolved, spec.resources),
    }


def _requests(facts: AttemptFacts, spec: FineTuneJobSpec) -> dict[str, Any]:
    """Memory is request and limit in one; CPU may be more where the node has some to spare."""
    wanted = spec.prepare if facts.kind == "prepare" else spec.resources
    fixed = {"memory": wanted.memory}
    if facts.kind == "train":
        fixed |= {name: str(number) for name, number in (spec.resources.devices or {}).items()}
        if spec.resources.gpus_per_node:
            fixed[spec.resources.gpu_resource] = str(spec.resources.gpus_per_node)
    return {"requests": {"cpu": wanted.cpu, **fixed}, "limits": fixed}


def _spread(facts: AttemptFacts) -> dict[str, Any]:
    """Each pod on a node of its own, rather than not at all: pods that must share one train as well. That it is said
    also keeps a cluster's default away, which would spread ranks over zones, far from each other."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"batch.kubernetes.io/job-name": facts.job_name}},
    }


def _node_gone() -> list[dict[str, Any]]:
    return [
        {
            "key": f"node.kubernetes.io/{taint}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": NODE_GONE_SECONDS,
        }
        for taint in ("not-ready", "unreachable")
    ]
