"""The pod that reads a workspace: restricted, without a token, and without any way to change what it reads.

It has the image of the job, because that has the trainer. It sleeps; each command is started in it from outside. It
belongs to the FineTuneJob, so nothing of it outlives the job. It has no label by which the operator, a Service or
`kubectl logs -l` takes it for a pod of the training.
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_cli import jobs, paths
from finetune_cli.cluster.client import Object
from finetune_cli.problem import Exit, Problem

CONTAINER = "reader"
WORKSPACE = "/workspace"
VOLUMES = "/volumes"
USER = 10001
NOT_MOUNTED = ("datasets", "evaluation", "output")
"""Parts of a resolved job with sources that no model needs."""
GATE = "kueue.x-k8s.io/queue-name"
NO_MESH = {"sidecar.istio.io/inject": "false", "istio.io/dataplane-mode": "none"}
"""A proxy beside the pod would only delay it."""


@dataclass(frozen=True)
class Need:
    """What a command needs of the pod."""

    seconds: int
    """How long the pod may live. It ends by itself even if this program was killed."""
    cpu: str = "100m"
    memory: str = "512Mi"
    gpu: bool = False
    models: bool = False
    """Whether the claims with the base model are mounted, beside the workspace."""
    queue: str | None = None
    """A LocalQueue of Kueue. None: as the job says."""
    image: str | None = None
    """None: the image that the operator has accepted for the job."""
    environment: tuple[dict[str, Any], ...] | None = None
    """Variables of a pod that calls hubs and buckets. None: it calls nobody."""


@dataclass(frozen=True)
class Place:
    """Where the pod runs, and how the node gets the image."""

    claim: str | None
    """The claim of the workspace. None: the pod has no workspace."""
    node: str | None = None
    """The node that has the workspace mounted. None: the scheduler chooses."""
    pull_secrets: tuple[str, ...] = ()


def manifest(job: Object, need: Need, place: Place) -> Object:
    """The pod, with a name that no other pod has."""
    meta, spec = job["metadata"], spec_of(job)
    resources: dict[str, Any] = spec.get("resources") or {}
    others = [claim for claim in model_claims(job) if claim != place.claim] if need.models else []
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": need.seconds,
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": resources.get("tolerations"),
        "imagePullSecrets": [{"name": name} for name in _pull_secrets(resources, place)],
        **_placement(spec, need, place),
        "containers": [_container(need.image or image_of(job), resources, need, place.claim, others)],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
            *([{"name": "workspace", "persistentVolumeClaim": {"claimName": place.claim}}] if place.claim else ()),
            *(
                {"name": f"source-{number}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
                for number, claim in enumerate(others)
            ),
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{meta['name']}-read-{secrets.token_hex(4)}",
            "namespace": meta["namespace"],
            "labels": {
                **NO_MESH,
                **(resources.get("podLabels") or {}),  # a policy of the cluster may require them
                paths.LABEL_READS: meta["name"],
                "app.kubernetes.io/name": "finetune-reader",
                "app.kubernetes.io/managed-by": "kubectl-finetune",
                **_queue(spec, need),
            },
            "annotations": {"linkerd.io/inject": "disabled", **(resources.get("podAnnotations") or {})},
            "ownerReferences": _owners(meta),
        },
        "spec": {field: value for field, value in pod.items() if value not in (None, [], {})},
    }


def _owners(meta: Mapping[str, Any]) -> list[Object]:
    """The job, unless it does not exist yet."""
    if "uid" not in meta:
        return []
    return [{"apiVersion": paths.API_VERSION, "kind": "FineTuneJob", "name": meta["name"], "uid": meta["uid"]}]


def spec_of(job: Object) -> dict[str, Any]:
    """The spec, with what the presets of the namespace have filled in."""
    from finetune_api.presets import filled_in

    presets = (jobs.status(job).get("resolved") or {}).get("presets") or {}
    return filled_in(job["spec"], presets.get("filled") or {})


def claim_of(job: Object) -> str:
    """The claim of the workspace: that of the spec, or that which the operator made."""
    return str((job["spec"].get("workspace") or {}).get("claimName") or f"{job['metadata']['name']}-workspace")


def image_of(job: Object) -> str:
    """The trainer image of the job. Raises Problem if the operator has not accepted the job yet."""
    image = (jobs.status(job).get("resolved") or {}).get("image")
    if not image:
        name = job["metadata"]["name"]
        raise Problem(
            f"{name} has nothing in its workspace yet, because the operator has not accepted it."
            f" `finetune why {name}` says more.",
            Exit.REFUSED,
        )
    return str(image)


def _container(
    image: str, resources: dict[str, Any], need: Need, claim: str | None, others: list[str]
) -> dict[str, Any]:
    fixed: dict[str, str] = {"memory": need.memory}
    if need.gpu:
        fixed[resources.get("gpuResource") or "nvidia.com/gpu"] = "1"
    # As in the job's own pods: no limit of the CPU, unless the job sets it, because a quota may require it.
    limit = {"cpu": str(resources["cpuLimit"])} if resources.get("cpuLimit") else {}
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", str(need.seconds)],
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": "TMPDIR", "value": "/tmp"},
            {"name": "HF_HOME", "value": "/tmp/hf"},
            *([{"name": "HF_HUB_OFFLINE", "value": "1"}] if need.environment is None else need.environment),
        ],
        "resources": {"requests": {"cpu": need.cpu, **fixed}, "limits": {**limit, **fixed}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            # Read-only here and not in the volume: a node mounts a claim once, and a training may write to it.
            # The base model may lie on the claim of the workspace too.
            *(
                {"name": "workspace", "mountPath": path, "readOnly": True}
                for path in ((WORKSPACE, f"{VOLUMES}/{claim}") if claim else ())
            ),
            *(
                {"name": f"source-{number}", "mountPath": f"{VOLUMES}/{other}", "readOnly": True}
                for number, other in enumerate(others)
            ),
        ],
    }


def _placement(spec: Mapping[str, Any], need: Need, place: Place) -> dict[str, Any]:
    """The node of the workspace; or, if no node has it mounted, as the pod that prepares."""
    resources = spec.get("resources") or {}
    if place.node:
        name = {"key": "metadata.name", "operator": "In", "values": [place.node]}
        terms = {"nodeSelectorTerms": [{"matchFields": [name]}]}
        return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}
    prepare = None if need.gpu else (spec.get("prepare") or {}).get("nodeSelector")
    return {"nodeSelector": prepare or resources.get("nodeSelector"), "affinity": resources.get("affinity")}


def _queue(spec: Mapping[str, Any], need: Need) -> dict[str, str]:
    """Kueue's label, for clusters where it manages pods: the queue of the pods that prepare, or with a GPU that of the
    training."""
    queue = need.queue or (spec.get("queue") if need.gpu else (spec.get("prepare") or {}).get("queue"))
    return {GATE: str(queue)} if queue else {}


def _pull_secrets(resources: Mapping[str, Any], place: Place) -> list[str]:
    return list(dict.fromkeys([*(resources.get("imagePullSecrets") or ()), *place.pull_secrets]))


def model_claims(job: Object) -> list[str]:
    """The claims of the models that the job names, after the artifacts of other jobs took the place of fromJob."""
    from finetune_api import stored_job

    stored = (jobs.status(job).get("resolved") or {}).get("job")
    document = json.loads(stored_job.load(stored)) if stored else job["spec"]
    named = [document[part] for part in document if part not in NOT_MOUNTED]
    return list(dict.fromkeys(uri.removeprefix("pvc://").partition("/")[0] for uri in _volumes(named)))


def _volumes(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith("pvc://"):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _volumes(each)
