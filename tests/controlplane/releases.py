"""What another release left in the cluster: captured objects, put back with the identities of a new cluster."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.status import TRAINER_FIELDS

from tests.controlplane.scene import FTJ, Scene
from tests.kube import Object

ACCOUNT = "finetune-trainer"
CAPTURED = Path(__file__).resolve().parents[1] / "golden" / "releases"
_SERVERS_LABELS = ("controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name")


@dataclass(frozen=True)
class Left:
    """A FineTuneJob and its child jobs, as captured, but with the identity of the restored FineTuneJob."""

    job: Object
    child_jobs: list[Object]

    @property
    def document(self) -> str:
        """The job.json that all attempts of that release have received."""
        documents = {resolved_job(child) for child in self.child_jobs}
        assert len(documents) == 1
        return documents.pop()


def resolved_job(child: Object) -> str:
    """The job.json of a child job's pods."""
    return str(child["spec"]["template"]["metadata"]["annotations"]["finetune-operator.io/resolved-job"])


def restore(
    scene: Scene, release: str, situation: str, *, child_jobs: bool = True, resources: Object | None = None
) -> Left:
    """Put a captured FineTuneJob with its status, and its unfinished child jobs, into the scene's namespace. It may get
    more resources than were captured."""
    text = (CAPTURED / release / f"{situation}.json").read_text()
    old = json.loads(text)["job"]["metadata"]
    spec = json.loads(text)["job"]["spec"]
    spec["resources"] = {**spec.get("resources", {}), **(resources or {})}
    head: Object = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": FTJ}
    made = scene.kube.create({**head, "metadata": {"name": old["name"]}, "spec": spec}, scene.namespace)
    uid = made["metadata"]["uid"]
    text = text.replace(old["uid"], uid).replace(f"-{old['uid'][:5]}-", f"-{uid[:5]}-")
    text = text.replace(f'"{old["namespace"]}"', f'"{scene.namespace}"')
    text = text.replace(f'\\"{old["namespace"]}\\"', f'\\"{scene.namespace}\\"')
    # A start deadline would be over long since.
    text = re.sub(rf"{old['creationTimestamp'][:10]}T[0-9:]+Z", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), text)
    left = Left(job=json.loads(text)["job"], child_jobs=json.loads(text)["childJobs"])
    status = left.job["status"]
    head["metadata"] = {"name": old["name"], "namespace": scene.namespace, "uid": uid}
    trainers = {name: value for name, value in status.items() if name in TRAINER_FIELDS}
    operators = {name: value for name, value in status.items() if name not in TRAINER_FIELDS}
    scene.kube.apply({**head, "status": operators}, manager="finetune-operator", part="status")
    if trainers:
        scene.kube.apply({**head, "status": trainers}, manager="finetune-trainer", part="status")
    # The operator makes it with each attempt; without it a Job makes no pods.
    scene.kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}}, scene.namespace)
    for child in left.child_jobs if child_jobs else ():
        if not any(c["type"] in ("Complete", "Failed") for c in child.get("status", {}).get("conditions", [])):
            scene.kube.create(_fresh(child), scene.namespace)
    return left


def _fresh(child: Object) -> Object:
    """A Job without what the API server added to it."""
    meta: dict[str, Any] = {name: child["metadata"][name] for name in ("name", "labels", "ownerReferences")}
    spec = {name: value for name, value in child["spec"].items() if name not in ("selector", "manualSelector")}
    template = spec["template"]
    labels = {name: value for name, value in template["metadata"]["labels"].items() if name not in _SERVERS_LABELS}
    spec["template"] = {**template, "metadata": {**template["metadata"], "labels": labels}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}
