"""What is mounted into the trainer's container: its orders, scratch space, the workspace, sources, the user's own.

Sources on a hub or in a bucket mount nothing: the prepare pod fetches them.
"""

from typing import Any

from finetune_api import source
from finetune_api.contract import ATTEMPT_FILE, CONFIG_MAPS, JOB_FILE, VOLUMES, WORKSPACE, ResolvedJob, source_of
from finetune_api.resources import ResourcesSpec

from finetune_operator.names import ATTEMPT_ANNOTATION, JOB_ANNOTATION

_WORKSPACE_VOLUME = "finetune-workspace"

Volume = dict[str, Any]


def volumes(job: ResolvedJob, wanted: ResourcesSpec) -> list[Volume]:
    """The pod's volumes."""
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
        {"name": "finetune-tmp", "emptyDir": {}},
        {"name": "finetune-shm", "emptyDir": {"medium": "Memory", "sizeLimit": wanted.shared_memory}},
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
        *(volume.to_dict() for volume in wanted.volumes or []),
    ]


def mounts(job: ResolvedJob, wanted: ResourcesSpec) -> list[Volume]:
    """Where the container sees them."""
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
        *(mount.to_dict() for mount in wanted.volume_mounts or []),
    ]


def _sources(job: ResolvedJob) -> list[str]:
    """Every URI that the job reads: another job's adapter is of use only with the model that it goes on."""
    adapter = job.tuning.adapter.source if job.tuning.adapter else None
    others = (source_of(job, "reference"), source_of(job, "rewardModel"))
    bases = (reference.artifact.base for reference in job.references)
    evaluated = job.evaluation.datasets if job.evaluation else None
    datasets = (dataset.source for dataset in (*job.datasets, *(evaluated or ())))
    return [uri for uri in (job.model.source, adapter, *others, *bases, *datasets) if uri is not None]


def _claims(job: ResolvedJob) -> dict[str, str]:
    """Claim of a source -> name of its volume. The workspace's claim may be a source too: one volume, two mounts."""
    claims = dict.fromkeys(claim for uri in _sources(job) if (claim := source.claim_of(uri)))
    return {
        claim: _WORKSPACE_VOLUME if claim == job.workspace_claim else f"finetune-source-{position}"
        for position, claim in enumerate(claims)
    }


def _config_maps(job: ResolvedJob) -> dict[str, list[str]]:
    """ConfigMap of a source -> the keys that are read. Only those are mounted, so that a missing one keeps the pod
    from starting with the kubelet's words, not with an empty folder."""
    keys: dict[str, list[str]] = {}
    for uri in _sources(job):
        place = source.config_map_of(uri)
        if place is not None and place.key not in keys.setdefault(place.name, []):
            keys[place.name].append(place.key)
    return keys


def _from_annotation(file: str, annotation: str) -> Volume:
    return {"path": file.rsplit("/", 1)[1], "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
