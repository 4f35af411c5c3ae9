"""What is mounted into the trainer's container: its orders, scratch space, the workspace, sources, the user's own.

Sources on a hub or in a bucket mount nothing: the prepare pod fetches them.
"""

from typing import Any

from finetune_api import source
from finetune_api.contract import ATTEMPT_FILE, CONFIG_MAPS, JOB_FILE, VOLUMES, WORKSPACE, claim_name
from finetune_api.job import GROUP
from finetune_api.spec import FineTuneJobSpec

JOB_ANNOTATION = f"{GROUP}/resolved-job"
ATTEMPT_ANNOTATION = f"{GROUP}/attempt-facts"
_WORKSPACE_VOLUME = "finetune-workspace"

Volume = dict[str, Any]


def volumes(name: str, spec: FineTuneJobSpec) -> list[Volume]:
    """The pod's volumes; `name` is the FineTuneJob's."""
    workspace = claim_name(name, spec)
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
        {"name": "finetune-shm", "emptyDir": {"medium": "Memory", "sizeLimit": spec.resources.shared_memory}},
        {"name": _WORKSPACE_VOLUME, "persistentVolumeClaim": {"claimName": workspace}},
        *(
            {"name": volume, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
            for claim, volume in _claims(spec, workspace).items()
            if volume != _WORKSPACE_VOLUME
        ),
        *(
            {
                "name": f"finetune-config-{position}",
                "configMap": {"name": config_map, "items": [{"key": key, "path": key} for key in keys]},
            }
            for position, (config_map, keys) in enumerate(_config_maps(spec).items())
        ),
        *(volume.to_dict() for volume in spec.resources.volumes or []),
    ]


def mounts(name: str, spec: FineTuneJobSpec) -> list[Volume]:
    """Where the container sees them."""
    return [
        {"name": "finetune-job", "mountPath": "/etc/finetune", "readOnly": True},
        {"name": "finetune-tmp", "mountPath": "/tmp"},
        {"name": "finetune-shm", "mountPath": "/dev/shm"},
        {"name": _WORKSPACE_VOLUME, "mountPath": WORKSPACE},
        *(
            {"name": volume, "mountPath": f"{VOLUMES}/{claim}", "readOnly": True}
            for claim, volume in _claims(spec, claim_name(name, spec)).items()
        ),
        *(
            {"name": f"finetune-config-{position}", "mountPath": f"{CONFIG_MAPS}/{config_map}", "readOnly": True}
            for position, config_map in enumerate(_config_maps(spec))
        ),
        *(mount.to_dict() for mount in spec.resources.volume_mounts or []),
    ]


def _sources(spec: FineTuneJobSpec) -> list[str]:
    """Every URI that the job reads."""
    evaluated = spec.evaluation.datasets if spec.evaluation else None
    adapter = [spec.tuning.adapter.source] if spec.tuning.adapter else []
    return [spec.model.source, *adapter, *(dataset.source for dataset in (*spec.datasets, *(evaluated or ())))]


def _claims(spec: FineTuneJobSpec, workspace: str) -> dict[str, str]:
    """Claim of a source -> name of its volume. The workspace's claim may be a source too: one volume, two mounts."""
    claims = dict.fromkeys(claim for uri in _sources(spec) if (claim := source.claim_of(uri)))
    return {
        claim: _WORKSPACE_VOLUME if claim == workspace else f"finetune-source-{position}"
        for position, claim in enumerate(claims)
    }


def _config_maps(spec: FineTuneJobSpec) -> dict[str, list[str]]:
    """ConfigMap of a source -> the keys that are read. Only those are mounted, so that a missing one keeps the pod
    from starting with the kubelet's words, not with an empty folder."""
    keys: dict[str, list[str]] = {}
    for uri in _sources(spec):
        place = source.config_map_of(uri)
        if place is not None and place.key not in keys.setdefault(place.name, []):
            keys[place.name].append(place.key)
    return keys


def _from_annotation(file: str, annotation: str) -> Volume:
    return {"path": file.rsplit("/", 1)[1], "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
