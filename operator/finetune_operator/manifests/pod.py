"""The training pod: restricted, told what to do by two annotations, and hard to disturb."""

from typing import Any

from finetune_api import source
from finetune_api.contract import ATTEMPT_FILE, JOB_FILE, VOLUMES, WORKSPACE, AttemptFacts, ResolvedJob, canonical
from finetune_api.job import GROUP
from finetune_api.resources import EnvVar, ResourcesSpec
from finetune_api.spec import FineTuneJobSpec

from finetune_operator.names import CONTAINER, SERVICE_ACCOUNT, child_labels
from finetune_operator.settings import Settings

JOB_ANNOTATION = f"{GROUP}/resolved-job"
ATTEMPT_ANNOTATION = f"{GROUP}/attempt-facts"
USER = 10001
NODE_GONE_SECONDS = 60
"""How long a pod stays bound to a node that does not answer; Kubernetes' own default is five minutes."""
_WORKSPACE_VOLUME = "finetune-workspace"


def pod_template(
    facts: AttemptFacts, spec: FineTuneJobSpec, resolved: ResolvedJob, image: str, settings: Settings
) -> dict[str, Any]:
    """The Job's pod template. The resolved job travels in an annotation, so that an attempt is one write."""
    wanted = spec.resources
    claims = _claims(spec)
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": wanted.service_account_name or SERVICE_ACCOUNT,
        # Also where the account says otherwise: without its token a run can report nothing.
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": wanted.termination_grace_period_seconds,
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
        "containers": [_container(wanted, image, claims, settings)],
        "volumes": _volumes(spec, claims),
    }
    if resolved.runtime.nodes > 1:
        pod["subdomain"] = facts.job_name
    pull_secrets = [*settings.trainer_pull_secrets, *(wanted.image_pull_secrets or [])]
    if pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in pull_secrets]
    if wanted.node_selector:
        pod["nodeSelector"] = wanted.node_selector
    if wanted.affinity:
        pod["affinity"] = wanted.affinity.to_dict()
    if wanted.priority_class_name:
        pod["priorityClassName"] = wanted.priority_class_name
    return {
        "metadata": {
            "labels": child_labels(facts.name, spec.stage, facts.attempt),
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


def _container(wanted: ResourcesSpec, image: str, claims: dict[str, str], settings: Settings) -> dict[str, Any]:
    memory = {"memory": wanted.memory}
    gpus = {wanted.gpu_resource: str(wanted.gpus_per_node)} if wanted.gpus_per_node else {}
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": settings.trainer_image_pull_policy,
        "args": ["train", "--job", JOB_FILE],
        "env": [
            {"name": "FINETUNE_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            {"name": "FINETUNE_IMAGE", "value": image},
            {"name": "HOME", "value": "/tmp"},
            {"name": "TMPDIR", "value": "/tmp"},
            {"name": "HF_HOME", "value": "/tmp/hf"},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            *(_env(variable) for variable in wanted.env or []),
        ],
        "resources": {"requests": {"cpu": wanted.cpu, **memory, **gpus}, "limits": {**memory, **gpus}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": "finetune-job", "mountPath": "/etc/finetune", "readOnly": True},
            {"name": "finetune-tmp", "mountPath": "/tmp"},
            {"name": "finetune-shm", "mountPath": "/dev/shm"},
            {"name": _WORKSPACE_VOLUME, "mountPath": WORKSPACE},
            *(
                {"name": volume, "mountPath": f"{VOLUMES}/{claim}", "readOnly": True}
                for claim, volume in claims.items()
            ),
            *(mount.to_dict() for mount in wanted.volume_mounts or []),
        ],
    }


def _claims(spec: FineTuneJobSpec) -> dict[str, str]:
    """Claim of a source -> name of its volume. The workspace's claim may be a source too: one volume, two mounts."""
    named = [spec.model.source, *(dataset.source for dataset in spec.datasets)]
    claims = dict.fromkeys(source.parse(uri).claim for uri in named)
    return {
        claim: _WORKSPACE_VOLUME if claim == spec.workspace.claim_name else f"finetune-source-{position}"
        for position, claim in enumerate(claims)
    }


def _volumes(spec: FineTuneJobSpec, claims: dict[str, str]) -> list[dict[str, Any]]:
    wanted = spec.resources
    return [
        {
            "name": "finetune-job",
            "downwardAPI": {
                "items": [
                    _from_annotation(JOB_FILE, JOB_ANNOTATION),
                    _from_annotation(ATTEMPT_FILE, ATTEMPT_ANNOTATION),
                ]
            },
        },
        {"name": "finetune-tmp", "emptyDir": {}},
        {"name": "finetune-shm", "emptyDir": {"medium": "Memory", "sizeLimit": wanted.shared_memory}},
        {"name": _WORKSPACE_VOLUME, "persistentVolumeClaim": {"claimName": spec.workspace.claim_name}},
        *(
            {"name": volume, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
            for claim, volume in claims.items()
            if volume != _WORKSPACE_VOLUME
        ),
        *(volume.to_dict() for volume in wanted.volumes or []),
    ]


def _from_annotation(file: str, annotation: str) -> dict[str, Any]:
    return {"path": file.rsplit("/", 1)[1], "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}


def _env(variable: EnvVar) -> dict[str, Any]:
    if variable.value is not None:
        return {"name": variable.name, "value": variable.value}
    if variable.secret_key_ref is not None:
        return {"name": variable.name, "valueFrom": {"secretKeyRef": variable.secret_key_ref.to_dict()}}
    assert variable.config_map_key_ref is not None, "exactly one, by the model"
    return {"name": variable.name, "valueFrom": {"configMapKeyRef": variable.config_map_key_ref.to_dict()}}


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
