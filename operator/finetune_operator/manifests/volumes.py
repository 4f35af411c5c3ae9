"""The mounts of the trainer's container: the job, scratch space, the workspace, sources, and the user's volumes.

Sources on a hub or in a bucket mount nothing: the prepare pod fetches them.
"""

from typing import Any

from finetune_api import source
from finetune_api.contract import (
    ATTEMPT_FILE,
    CONFIG_MAPS,
    JOB_FILE,
    VOLUMES,
    WORKSPACE,
    ResolvedJob,
    base_of,
    source_of,
)
from finetune_api.resources import ResourcesSpec

from finetune_operator.names import ATTEMPT_ANNOTATION, JOB_ANNOTATION

_WORKSPACE_VOLUME = "finetune-workspace"

Volume = dict[str, Any]


def volumes(job: ResolvedJob, resources: ResourcesSpec, temporary_storage: str) -> list[Volume]:
    """The pod's volumes. /tmp has a limit: without it a run that fills its node's disk takes the other pods with it,
    and its eviction looks like a fault of the node."""
    workspace = job.workspace_claim
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
        {"name": "finetune-tmp", "emptyDir": {"sizeLimit": temporary_storage}},
        {"name": "finetune-shm", "emptyDir": {"medium": "Memory", "sizeLimit": resources.shared_memory}},
        {"name": _WORKSPACE_VOLUME, "persistentVolumeClaim": {"claimName": workspace}},
        *(
            {"name": volume, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
            for claim, volume in _claims(job).items()
            if volume != _WORKSPACE_VOLUME
        ),
        *(
            {
                "name": f"finetune-config-{position}",
                "configMap": {"name": config_map, "items": [{"key": key, "path": key} for key in keys]},
            }
            for position, (config_map, keys) in enumerate(_config_maps(job).items())
        ),
        *(volume.to_dict() for volume in resources.volumes or []),
    ]


def mounts(job: ResolvedJob, resources: ResourcesSpec) -> list[Volume]:
    """The mount points of `volumes`."""
    return [
        {"name": "finetune-job", "mountPath": "/etc/finetune", "readOnly": True},
        {"name": "finetune-tmp", "mountPath": "/tmp"},
        {"name": "finetune-shm", "mountPath": "/dev/shm"},
        {"name": _WORKSPACE_VOLUME, "mountPath": WORKSPACE},
        *(
            {"name": volume, "mountPath": f"{VOLUMES}/{claim}", "readOnly": True}
            for claim, volume in _claims(job).items()
        ),
        *(
            {"name": f"finetune-config-{position}", "mountPath": f"{CONFIG_MAPS}/{config_map}", "readOnly": True}
            for position, config_map in enumerate(_config_maps(job))
        ),
        *(mount.to_dict() for mount in resources.volume_mounts or []),
    ]


def _sources(job: ResolvedJob) -> list[str]:
    """Every URI that the job reads. Another job's adapter needs its base model too."""
    adapter = job.tuning.adapter.source if job.tuning.adapter else None
    others = (source_of(job, "reference"), source_of(job, "rewardModel"))
    recorded = (reference.artifact.base for reference in job.references)
    bases = (*recorded, base_of(job, "reference"), base_of(job, "rewardModel"))
    evaluated = job.evaluation.datasets if job.evaluation else None
    datasets = (dataset.source for dataset in (*job.datasets, *(evaluated or ())))
    return [uri for uri in (job.model.source, adapter, *others, *bases, *datasets) if uri is not None]


def _claims(job: ResolvedJob) -> dict[str, str]:
    """Claim of a source -> name of its volume. The workspace's claim may be a source too: then one volume has two
    mounts."""
    claims = dict.fromkeys(claim for uri in _sources(job) if (claim := source.claim_of(uri)))
    return {
        claim: _WORKSPACE_VOLUME if claim == job.workspace_claim else f"finetune-source-{position}"
        for position, claim in enumerate(claims)
    }


def _config_maps(job: ResolvedJob) -> dict[str, list[str]]:
    """ConfigMap of a source -> the keys that are read. Only these are mounted, so that a missing key keeps the pod from
    starting, with a message of the kubelet, and is no empty directory."""
    keys: dict[str, list[str]] = {}
    for uri in _sources(job):
        place = source.config_map_of(uri)
        if place is not None and place.key not in keys.setdefault(place.name, []):
            keys[place.name].append(place.key)
    return keys


def _from_annotation(file: str, annotation: str) -> Volume:
    return {"path": file.rsplit("/", 1)[1], "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
