"""A child job: the batch/v1 Job of an attempt."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.job import KIND
from finetune_api.status import AppliedPresets, Reference, Resolved
from finetune_api.stored_job import store

from finetune_operator.names import (
    CONTAINER,
    JOB_ANNOTATION,
    LABEL_MANAGED,
    LABEL_QUEUE,
    PRESETS_ANNOTATION,
    Kind,
    job_prefix,
)
from finetune_operator.views.container import memory_limit, requested, trainer
from finetune_operator.views.metadata import Key, Raw, metadata, parse_labels, parse_time, section, true_condition


@dataclass(frozen=True)
class ChildJobView:
    """The batch/v1 Job of an attempt."""

    key: Key
    name: str
    uid: str
    resource_version: int
    kind: Kind
    attempt: int
    owner_uid: str
    created: datetime
    deleting: bool
    complete: bool
    failed_reason: str | None
    """Reason of the condition Failed=True. FailureTarget does not count: pods may still run."""
    failed_message: str
    suspended: bool = False
    """Whether somebody set spec.suspend, or the Job controller has not resumed it yet: it gets no pods."""
    parallelism: int | None = None
    """How many pods it may have. None: not known."""
    watched: bool = True
    """Whether it has the label that the watch selects."""
    started: datetime | None = None
    """When the Job controller began to create pods; again after a suspension. None: not yet, or suspended."""
    ended: datetime | None = None
    """When it was Complete or Failed, which is after its pods have ended. None: it is not."""
    queue: str = ""
    """The LocalQueue that its label names: the job's, or one that Kueue has set (a LocalQueue with the name default).
    Empty: none."""
    requests: Mapping[str, str] = field(default_factory=dict)
    """Requests of the trainer's container in the template. Those of a pod may differ: admission changes pods."""
    memory_limit: str = ""
    """Memory limit of the trainer's container in the template."""

    @property
    def finished(self) -> bool:
        return self.complete or self.failed_reason is not None


def child_job_view(raw: Raw) -> ChildJobView | None:
    """None for a Job that is no attempt's, whatever its labels."""
    meta = metadata(raw)
    owner: Raw = next((o for o in meta.get("ownerReferences") or [] if o.get("controller")), {})
    identity = parse_labels(meta) or _from_name(meta, owner)
    if identity is None:
        return None
    key, kind, attempt = identity
    complete, failed = true_condition(raw, "Complete"), true_condition(raw, "Failed")
    ended = (complete or failed or {}).get("lastTransitionTime")
    spec: Raw = raw.get("spec") or {}
    started = (raw.get("status") or {}).get("startTime")
    container = trainer(section(section(spec, "template"), "spec"), "containers")
    return ChildJobView(
        key=key,
        name=meta["name"],
        uid=meta["uid"],
        resource_version=int(meta["resourceVersion"]),
        kind=kind,
        attempt=attempt,
        owner_uid=owner.get("uid", ""),
        created=parse_time(meta["creationTimestamp"]),
        deleting="deletionTimestamp" in meta,
        complete=complete is not None,
        failed_reason=failed.get("reason", "") if failed else None,
        failed_message=failed.get("message", "") if failed else "",
        # Until the Job controller has taken note of the end of a suspension, started is not yet its new start.
        suspended=bool(spec.get("suspend")) or true_condition(raw, "Suspended") is not None,
        parallelism=spec.get("parallelism"),
        watched=(meta.get("labels") or {}).get(LABEL_MANAGED) == "true",
        started=parse_time(started) if started else None,
        ended=parse_time(ended) if ended else None,
        queue=(meta.get("labels") or {}).get(LABEL_QUEUE, ""),
        requests=requested(container),
        memory_limit=memory_limit(container),
    )


def _from_name(meta: Raw, owner: Raw) -> tuple[Key, Kind, int] | None:
    """What the labels say, from what cannot be changed: for a Job whose labels somebody removed."""
    name, uid = owner.get("name"), owner.get("uid")
    if owner.get("kind") != KIND or not isinstance(name, str) or not isinstance(uid, str):
        return None
    match = re.fullmatch(re.escape(job_prefix(name, uid)) + "(p?)([0-9]{1,3})", meta["name"])
    return ((meta["namespace"], name), "prepare" if match[1] else "train", int(match[2])) if match else None


@dataclass(frozen=True)
class AcceptedTerms:
    """What the acceptance of a FineTuneJob fixed for all its attempts, as the pods of an attempt received it."""

    references: list[Reference]
    resolved: Resolved


def accepted_terms(raw: Raw) -> AcceptedTerms | None:
    """Read from a child job's pod template; None if the operator did not create it."""
    template = raw["spec"]["template"]
    annotation = (template["metadata"].get("annotations") or {}).get(JOB_ANNOTATION)
    if annotation is None:
        return None
    job = json.loads(annotation)
    presets = section(section(raw, "metadata"), "annotations").get(PRESETS_ANNOTATION)
    image = next(container["image"] for container in template["spec"]["containers"] if container["name"] == CONTAINER)
    return AcceptedTerms(
        [Reference.read(reference) for reference in job.get("references", [])],
        Resolved(
            image=image,
            contract=job["contract"],
            digest=job["digest"],
            job=store(annotation),
            presets=AppliedPresets.read(json.loads(presets)) if presets else None,
        ),
    )
