"""What the operator sees of a FineTuneJob and its children, reduced to what decisions need.

The cache keeps these views instead of whole objects: a few hundred bytes each. Parsed from plain dictionaries, as
watches, lists and single reads all give them.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from finetune_api.job import KIND
from finetune_api.status import TRAINER_FIELDS, Reference, Resolved

from finetune_operator.names import CONTAINER, JOB_ANNOTATION, LABEL_ATTEMPT, LABEL_JOB, LABEL_KIND, Kind

Raw = dict[str, Any]
Key = tuple[str, str]
"""(namespace, name) of a FineTuneJob."""


def parse_time(text: str) -> datetime:
    """RFC 3339, as Kubernetes writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def format_time(moment: datetime) -> str:
    """RFC 3339 to the second, as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Standing:
    """All that jobs which wait for a job say of it: nothing else that happens to it is news to them."""

    uid: str
    deleting: bool
    phase: str
    reason: str
    tenths: int
    """Of its training, done: each percent would be a write for each job that waits."""


@dataclass(frozen=True)
class JobView:
    """A FineTuneJob as it stands on the server."""

    namespace: str
    name: str
    uid: str
    resource_version: int
    generation: int
    deleting: bool
    spec: Raw
    status: Raw

    @property
    def key(self) -> Key:
        return self.namespace, self.name

    @property
    def claim(self) -> str:
        """The claim behind its workspace, as `finetune_api.contract.claim_name` of a spec that isn't parsed."""
        return str((self.spec.get("workspace") or {}).get("claimName") or f"{self.name}-workspace")

    @property
    def waits_for(self) -> set[str]:
        """Names of the jobs whose artifacts it uses, until these are fixed: `finetune_api.chaining.from_jobs` of a spec
        that isn't parsed. Of a job that has Failed, too: it can't be run while they stand as they do."""
        if self.status.get("references"):
            return set()
        section = self.spec.get(self.spec.get("stage", "")) or {}
        places = (self.spec.get("model"), section.get("reference"), section.get("rewardModel"))
        return {place["fromJob"] for place in places if place and "fromJob" in place}

    @property
    def standing(self) -> Standing:
        """How it stands."""
        phase, progress = self.status.get("phase", ""), self.status.get("progress") or {}
        tenths = int(progress.get("percent", 0)) // 10 if phase == "Running" else 0
        return Standing(self.uid, self.deleting, phase, self.status.get("reason", ""), tenths)

    def same_for_us(self, other: "JobView | None") -> bool:
        """Whether only fields of the trainer differ, and of these nothing that a condition repeats."""
        if other is None:
            return False
        return (
            self.uid == other.uid
            and self.generation == other.generation
            and self.deleting == other.deleting
            and operator_part(self.status) == operator_part(other.status)
            and _activity(self.status) == _activity(other.status)
        )


def operator_part(status: Raw) -> Raw:
    """The status without the trainer's fields."""
    return {name: value for name, value in status.items() if name not in TRAINER_FIELDS}


def _activity(status: Raw) -> object:
    """What the trainer says it is doing; its steps are not in it."""
    return (status.get("progress") or {}).get("activity")


@dataclass(frozen=True)
class BatchView:
    """A batch/v1 Job of an attempt."""

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

    @property
    def finished(self) -> bool:
        return self.complete or self.failed_reason is not None


@dataclass(frozen=True)
class PodView:
    """A pod of an attempt."""

    key: Key
    name: str
    uid: str
    resource_version: int
    kind: Kind
    attempt: int
    rank: int
    """Its place among the attempt's pods, from 0: torch's node rank."""
    created: datetime
    deleting: bool
    phase: str
    status_reason: str
    """Pod status.reason: Evicted, NodeLost, ..."""
    node: str
    unschedulable: str | None
    """The scheduler's message, while it finds no node."""
    disruption: str | None
    """Reason and message of the condition DisruptionTarget=True."""
    waiting_reason: str
    waiting_message: str
    running: bool
    exit_code: int | None
    ended: str
    """When its container ended, as Kubernetes writes it; empty while it hasn't."""
    terminated_reason: str
    terminated_message: str
    """The termination message: the trainer's Result as JSON, if it got that far."""
    memory_limit: str

    @property
    def gone(self) -> bool:
        """Whether no process of it can be left."""
        return self.phase in ("Succeeded", "Failed")

    def called(self, nodes: int) -> str:
        """What to call it among so many."""
        return f"Pod {self.name}" if nodes == 1 else f"Node rank {self.rank} (pod {self.name})"


@dataclass(frozen=True)
class EventView:
    """A Kubernetes event about a Job or a pod."""

    reason: str
    message: str
    last: datetime


@dataclass(frozen=True)
class ClaimView:
    """A claim on which an artifact is kept."""

    modes: tuple[str, ...]
    """How it may be mounted."""
    owner: str = ""
    """Name of the FineTuneJob with which it is deleted; empty for one that stays."""


@dataclass(frozen=True)
class Others:
    """The jobs that a job waits for."""

    jobs: Mapping[str, JobView] = field(default_factory=dict)
    """Those that are there, by name."""
    claims: Mapping[str, ClaimView] = field(default_factory=dict)
    """The claims on which they keep their artifacts, where these are there."""
    ring: tuple[str, ...] = ()
    """Names of jobs that wait for each other, from the job back to it."""


@dataclass(frozen=True)
class Fixed:
    """What a job's acceptance has fixed for all of its attempts, as one of them was told."""

    references: list[Reference]
    resolved: Resolved


@dataclass(frozen=True)
class Observed:
    """Everything a plan may look at, besides the FineTuneJob itself."""

    batches: tuple[BatchView, ...] = ()
    """Jobs of this FineTuneJob (by uid), of any kind and attempt."""
    pods: tuple[PodView, ...] = ()
    """Pods of the current attempt."""
    events: tuple[EventView, ...] = field(default=())
    """Events of the current attempt's Job and pods, listed only while it doesn't come up."""
    refused: str = ""
    """Why the attempt's objects can't be made: the API server's words, or whose the name is that its Job needs."""
    workspace_modes: tuple[str, ...] | None = None
    """Access modes of the user's own claim, looked up before an attempt on several nodes is made; None: not there, or
    not looked up."""
    gpu_memory_bytes: int | None = None
    """What the nodes' labels say of a GPU's memory, looked up before an attempt at preparing is made."""
    others: Others = Others()
    """Looked up until their artifacts are fixed."""
    fixed: Fixed | None = None
    """Looked up where the status doesn't know it although there are Jobs: somebody wiped it."""

    def of(self, kind: Kind) -> "Observed":
        """What concerns attempts of one kind."""
        return replace(
            self,
            batches=tuple(batch for batch in self.batches if batch.kind == kind),
            pods=tuple(pod for pod in self.pods if pod.kind == kind),
        )

    def batch(self, attempt: int) -> BatchView | None:
        return next((batch for batch in self.batches if batch.attempt == attempt), None)


def _meta(raw: Raw) -> Raw:
    return dict(raw.get("metadata") or {})


def _condition(raw: Raw, kind: str) -> Raw | None:
    conditions = (raw.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c.get("type") == kind and c.get("status") == "True"), None)


def job_view(raw: Raw) -> JobView:
    meta = _meta(raw)
    return JobView(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        resource_version=int(meta["resourceVersion"]),
        generation=int(meta.get("generation", 0)),
        deleting="deletionTimestamp" in meta,
        spec=dict(raw.get("spec") or {}),
        status=dict(raw.get("status") or {}),
    )


def _labelled(meta: Raw) -> tuple[Key, Kind, int] | None:
    """Whose child it is, and of which attempt; None for objects that carry our label but aren't ours."""
    labels = meta.get("labels") or {}
    name, attempt = labels.get(LABEL_JOB), labels.get(LABEL_ATTEMPT, "")
    if not name or not re.fullmatch(r"[0-9]{1,3}", attempt):
        return None
    kind: Kind = "prepare" if labels.get(LABEL_KIND) == "prepare" else "train"
    return (meta["namespace"], name), kind, int(attempt)


def batch_view(raw: Raw) -> BatchView | None:
    meta = _meta(raw)
    labelled = _labelled(meta)
    if labelled is None:
        return None
    owner: Raw = next((o for o in meta.get("ownerReferences") or [] if o.get("controller")), {})
    failed = _condition(raw, "Failed")
    return BatchView(
        key=labelled[0],
        name=meta["name"],
        uid=meta["uid"],
        resource_version=int(meta["resourceVersion"]),
        kind=labelled[1],
        attempt=labelled[2],
        owner_uid=owner.get("uid", ""),
        created=parse_time(meta["creationTimestamp"]),
        deleting="deletionTimestamp" in meta,
        complete=_condition(raw, "Complete") is not None,
        failed_reason=failed.get("reason", "") if failed else None,
        failed_message=failed.get("message", "") if failed else "",
    )


def fixed_by(raw: Raw) -> Fixed | None:
    """What the pods of a batch/v1 Job are told; None for one of somebody else's making."""
    template = raw["spec"]["template"]
    told = (template["metadata"].get("annotations") or {}).get(JOB_ANNOTATION)
    if told is None:
        return None
    job = json.loads(told)
    image = next(one["image"] for one in template["spec"]["containers"] if one["name"] == CONTAINER)
    return Fixed(
        [Reference.model_validate(one) for one in job.get("references", [])],
        Resolved(image=image, contract=job["contract"], digest=job["digest"]),
    )


def pod_view(raw: Raw) -> PodView | None:
    meta = _meta(raw)
    labelled = _labelled(meta)
    if labelled is None:
        return None
    status: Raw = raw.get("status") or {}
    container: Raw = next((c for c in status.get("containerStatuses") or [] if c.get("name") == CONTAINER), {})
    state: Raw = container.get("state") or {}
    waiting: Raw = state.get("waiting") or {}
    terminated: Raw = state.get("terminated") or {}
    scheduled: Raw = next((c for c in status.get("conditions") or [] if c.get("type") == "PodScheduled"), {})
    disruption = _condition(raw, "DisruptionTarget")
    spec_container: Raw = next((c for c in (raw.get("spec") or {}).get("containers") or []), {})
    labels = meta.get("labels") or {}
    return PodView(
        key=labelled[0],
        name=meta["name"],
        uid=meta["uid"],
        resource_version=int(meta["resourceVersion"]),
        kind=labelled[1],
        attempt=labelled[2],
        rank=int(labels.get("batch.kubernetes.io/job-completion-index", 0)),
        created=parse_time(meta["creationTimestamp"]),
        deleting="deletionTimestamp" in meta,
        phase=status.get("phase", "Pending"),
        status_reason=status.get("reason", ""),
        node=(raw.get("spec") or {}).get("nodeName", ""),
        unschedulable=scheduled.get("message", "no node fits") if scheduled.get("status") == "False" else None,
        disruption=f"{disruption.get('reason', '')}: {disruption.get('message', '')}" if disruption else None,
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        running="running" in state,
        exit_code=terminated.get("exitCode"),
        ended=terminated.get("finishedAt") or "",
        terminated_reason=terminated.get("reason", ""),
        terminated_message=terminated.get("message", ""),
        memory_limit=((spec_container.get("resources") or {}).get("limits") or {}).get("memory", ""),
    )


def claim_modes(raw: Raw) -> tuple[str, ...]:
    """How a claim may be mounted: as was asked, and as the volume that it got allows."""
    asked = (raw.get("spec") or {}).get("accessModes") or []
    given = (raw.get("status") or {}).get("accessModes") or []
    return tuple(dict.fromkeys([*asked, *given]))


def claim_view(raw: Raw) -> ClaimView | None:
    """None for a claim that is being deleted: no new pod can mount it, and nothing brings it back."""
    meta = _meta(raw)
    if "deletionTimestamp" in meta:
        return None
    owner: Raw = next((o for o in meta.get("ownerReferences") or [] if o.get("kind") == KIND), {})
    return ClaimView(claim_modes(raw), owner.get("name", ""))


def least_gpu_memory(labels: Iterable[str]) -> int | None:
    """Bytes, from values of nvidia.com/gpu.memory, which counts MiB; what isn't a number says nothing."""
    return min((int(text) * 2**20 for text in labels if re.fullmatch(r"[1-9][0-9]{0,8}", text)), default=None)


def event_view(raw: Raw) -> EventView:
    last = raw.get("lastTimestamp") or raw.get("eventTime") or _meta(raw)["creationTimestamp"]
    return EventView(reason=raw.get("reason", ""), message=raw.get("message", ""), last=parse_time(last))
