"""The pod of an attempt: restricted, configured by two annotations, and protected from voluntary disruption.

A prepare pod is the training pod without GPUs and with its own requests. It is placed like the training pods, so that a
volume with WaitForFirstConsumer is bound where the GPUs are.
"""

from typing import Any

from finetune_api.contract import JOB_FILE, AttemptFacts, ResolvedJob, canonical, keeps_on_cpu
from finetune_api.placement import ResourceClaim, Topology
from finetune_api.resources import ResourcesSpec
from finetune_api.spec import FineTuneJobSpec

from finetune_operator.manifests import outbound
from finetune_operator.manifests.environment import METRICS_PORT, environment
from finetune_operator.manifests.volumes import mounts, volumes
from finetune_operator.names import ATTEMPT_ANNOTATION, CONTAINER, JOB_ANNOTATION, SERVICE_ACCOUNT, child_labels
from finetune_operator.settings import Settings

USER = 10001
NODE_GONE_SECONDS = 60
"""How long a pod stays bound to a node that does not answer. The default of Kubernetes is five minutes."""


def pod_count(facts: AttemptFacts, resolved: ResolvedJob, keep: bool = False) -> int:
    """Pods of an attempt: one for each node to train, one to prepare, one to make the artifact of a checkpoint."""
    return resolved.runtime.nodes if has_gpus(facts, resolved, keep) else 1


def has_gpus(facts: AttemptFacts, resolved: ResolvedJob, keep: bool) -> bool:
    """Whether the pods are those that the job asks for to train."""
    return facts.kind == "train" and not (keep and keeps_on_cpu(resolved))


def pod_template(
    facts: AttemptFacts,
    spec: FineTuneJobSpec,
    resolved: ResolvedJob,
    document: str,
    image: str,
    settings: Settings,
    keep: bool = False,
) -> dict[str, Any]:
    """The child job's pod template. The resolved job is in an annotation, so that creating an attempt is one write."""
    resources = spec.resources
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": resources.service_account_name or SERVICE_ACCOUNT,
        # Even if the account disables it: without the token a run cannot report anything.
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
        "tolerations": [*_node_gone(), *(t.to_dict() for t in resources.tolerations or [])],
        "containers": [_container(facts, spec, resolved, image, settings, keep)],
        "volumes": [*volumes(resolved, resources, settings.temporary_storage), *outbound.volumes(settings)],
    }
    if pod_count(facts, resolved, keep) > 1:
        # The Job controller sets a pod's host name to Job name and index: the ranks meet at <job>-0.<job>.
        pod["subdomain"] = facts.job_name
        pod["topologySpreadConstraints"] = [_spread(facts)]
    pull_secrets = dict.fromkeys([*settings.trainer_pull_secrets, *(resources.image_pull_secrets or [])])
    if pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in pull_secrets]
    node_selector = (spec.prepare.node_selector if facts.kind == "prepare" else None) or resources.node_selector
    if node_selector:
        pod["nodeSelector"] = node_selector
    trains = has_gpus(facts, resolved, keep)
    pod |= _placement(resources, trains)
    return {
        "metadata": {
            # Ours come last: nothing that the operator or the trainer relies on can be overwritten.
            "labels": {
                **(resources.pod_labels or {}),
                **child_labels(facts.name, spec.stage, facts.kind, facts.attempt),
            },
            "annotations": {
                **(resources.pod_annotations or {}),
                **(_topology(resources.topology) if resources.topology and trains else {}),
                JOB_ANNOTATION: document,
                ATTEMPT_ANNOTATION: canonical(facts.to_dict()),
                # Without these an autoscaler evicts a run on its third day to save a node.
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
                # A webhook may put a container before ours, and kubectl logs would then show that.
                "kubectl.kubernetes.io/default-container": CONTAINER,
            },
        },
        "spec": pod,
    }


def _container(
    facts: AttemptFacts, spec: FineTuneJobSpec, resolved: ResolvedJob, image: str, settings: Settings, keep: bool
) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": settings.trainer_image_pull_policy,
        "args": [facts.kind, *(["--keep"] if keep else []), "--job", JOB_FILE],
        "env": environment(facts, spec, image, settings),
        **_ports(facts, settings),
        "resources": _requests(facts, spec, gpus=has_gpus(facts, resolved, keep)),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "File",
        "volumeMounts": [*mounts(resolved, spec.resources), *outbound.mounts(settings)],
    }


def _ports(facts: AttemptFacts, settings: Settings) -> dict[str, Any]:
    """By the name of this port, the chart's PodMonitor finds the pods."""
    if settings.metrics_per_job != "pods" or facts.kind != "train":
        return {}
    return {"ports": [{"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}]}


def _requests(facts: AttemptFacts, spec: FineTuneJobSpec, *, gpus: bool) -> dict[str, Any]:
    """Memory has the same request and limit. CPU has no limit unless the job sets it, so that the pod can use what the
    node has free."""
    requested = spec.prepare if facts.kind == "prepare" else spec.resources
    fixed = {"memory": requested.memory}
    if gpus:
        fixed |= {name: str(number) for name, number in (spec.resources.devices or {}).items()}
        if spec.resources.gpus_per_node and not any(c.gpus for c in spec.resources.resource_claims or []):
            fixed[spec.resources.gpu_resource] = str(spec.resources.gpus_per_node)
    limits = {"cpu": requested.cpu_limit, **fixed} if requested.cpu_limit else fixed
    found: dict[str, Any] = {"requests": {"cpu": requested.cpu, **fixed}, "limits": limits}
    if gpus and spec.resources.resource_claims:
        found["claims"] = [
            {"name": claim.name, **({"request": claim.request} if claim.request else {})}
            for claim in spec.resources.resource_claims
        ]
    return found


def _placement(resources: ResourcesSpec, trains: bool) -> dict[str, Any]:
    """Who places the pod, and where. Only pods that train get claims on devices."""
    claims = [_claim(claim) for claim in resources.resource_claims or []] if trains else []
    found = {
        "affinity": resources.affinity.to_dict() if resources.affinity else None,
        "schedulerName": resources.scheduler_name,
        "resourceClaims": claims,
        "priorityClassName": resources.priority_class_name,
    }
    return {field: value for field, value in found.items() if value}


def _claim(claim: ResourceClaim) -> dict[str, Any]:
    """As in a pod. The container says what the trainer gets of it."""
    return {key: value for key, value in claim.to_dict().items() if key not in ("request", "gpus")}


def _topology(topology: Topology) -> dict[str, str]:
    """Annotations by which Kueue places pods that belong together."""
    kind, level = ("required", topology.required) if topology.required else ("preferred", topology.preferred)
    return {f"kueue.x-k8s.io/podset-{kind}-topology": str(level)}


def _spread(facts: AttemptFacts) -> dict[str, Any]:
    """Prefer a separate node for each pod; pods that share a node train as well. This also overrides a cluster's
    default constraint, which would spread the ranks over zones, far from each other."""
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
