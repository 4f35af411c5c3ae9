"""A pod of an attempt, and the events about it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from finetune_operator.names import Kind
from finetune_operator.views.container import OtherContainer, memory_limit, other_containers, requested, trainer
from finetune_operator.views.metadata import (
    Key,
    Raw,
    Unreadable,
    metadata,
    parse_labels,
    parse_time,
    section,
    true_condition,
)

_INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class PodView:
    """A pod of an attempt. Fields about a container are about the trainer's, except in `others`."""

    key: Key
    name: str
    uid: str
    resource_version: int
    kind: Kind
    attempt: int
    rank: int
    """Node rank: its index among the attempt's pods, from 0."""
    created: datetime
    deleting: bool
    phase: str
    status_reason: str
    """Pod status.reason: Evicted, NodeLost, ..."""
    node: str
    unschedulable: str | None
    """The scheduler's message while it finds no node."""
    disruption: str | None
    """Reason and message of the condition DisruptionTarget=True."""
    waiting_reason: str
    waiting_message: str
    running: bool
    exit_code: int | None
    ended: datetime | None
    """When its container ended. None: not yet, or nobody knows when."""
    terminated_reason: str
    terminated_message: str
    """The termination message: the trainer's Result as JSON, if it wrote any."""
    memory_limit: str
    """The limit that the kubelet enforces: admission or an autoscaler may have changed what the template has."""
    requests: Mapping[str, str] = field(default_factory=dict)
    """Requests of its container."""
    others: tuple[OtherContainer, ...] = ()
    """Containers that webhooks and policies of the cluster have added."""
    started: datetime | None = None
    """When its container began to run, while it runs."""
    scheduled: datetime | None = None
    """Since when it has a node, and holds its GPUs. None: it has none."""
    begun: datetime | None = None
    """When its container began to run, also if it has ended. None: it has not, or nobody knows when."""
    released: datetime | None = None
    """When the last of its containers ended, so that its GPUs are free. None: not yet, or nobody knows when."""
    asked_to_end: datetime | None = None
    """When it was deleted. None: it is not."""
    ends_by: datetime | None = None
    """When its grace period is over. None: it is not deleted."""

    @property
    def gone(self) -> bool:
        """Whether none of its processes can be left."""
        return self.phase in ("Succeeded", "Failed")

    def title(self, nodes: int) -> str:
        """Its name in messages about an attempt of so many pods."""
        return f"Pod {self.name}" if nodes == 1 else f"Node rank {self.rank} (pod {self.name})"


def pod_view(raw: Raw) -> PodView | None:
    """None for a pod that carries our label but is no attempt's."""
    meta = metadata(raw)
    labels = parse_labels(meta)
    if labels is None:
        return None
    key, kind, attempt = labels
    status: Raw = raw.get("status") or {}
    container = trainer(status, "containerStatuses")
    state: Raw = container.get("state") or {}
    waiting: Raw = state.get("waiting") or {}
    terminated: Raw = state.get("terminated") or {}
    scheduled: Raw = next((c for c in status.get("conditions") or [] if c.get("type") == "PodScheduled"), {})
    disruption = true_condition(raw, "DisruptionTarget")
    deleted = parse_time(meta["deletionTimestamp"]) if "deletionTimestamp" in meta else None
    grace = timedelta(seconds=meta.get("deletionGracePeriodSeconds") or 0)
    started, finished = (state.get("running") or {}).get("startedAt"), terminated.get("finishedAt")
    begun = started or terminated.get("startedAt")
    spec_container = trainer(raw.get("spec") or {}, "containers")
    return PodView(
        key=key,
        name=meta["name"],
        uid=meta["uid"],
        resource_version=int(meta["resourceVersion"]),
        kind=kind,
        attempt=attempt,
        rank=_rank(meta),
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
        ended=parse_time(finished) if finished else None,
        terminated_reason=terminated.get("reason", ""),
        terminated_message=terminated.get("message", ""),
        memory_limit=memory_limit(container) or memory_limit(spec_container),
        requests=requested(spec_container),
        others=other_containers(raw),
        started=parse_time(started) if started else None,
        scheduled=_scheduled(raw, scheduled),
        begun=parse_time(begun) if begun else None,
        released=_released(status),
        asked_to_end=deleted - grace if deleted else None,
        ends_by=deleted,
    )


def _scheduled(raw: Raw, condition: Raw) -> datetime | None:
    """By the condition PodScheduled. Without its time, from the creation of the pod on."""
    if not section(raw, "spec").get("nodeName"):
        return None
    moment = condition.get("lastTransitionTime") if condition.get("status") == "True" else None
    return parse_time(moment or section(raw, "metadata")["creationTimestamp"])


def _released(status: Raw) -> datetime | None:
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    listed = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    ends = [section(section(container, "state"), "terminated").get("finishedAt") for container in listed]
    return max((parse_time(end) for end in ends if end), default=None)


def _rank(meta: Raw) -> int:
    """From the label that the Job controller sets, and that everybody with the right to change pods can change."""
    index = (meta.get("labels") or {}).get(_INDEX, "0")
    if not re.fullmatch(r"[0-9]{1,5}", index):
        raise Unreadable(f"its label {_INDEX} is {index!r}, not the index of a pod")
    return int(index)


@dataclass(frozen=True)
class EventView:
    """A Kubernetes event about a child job or a pod."""

    about: str
    """Uid of the object."""
    reason: str
    message: str
    last: datetime


def event_view(raw: Raw) -> EventView:
    last = raw.get("lastTimestamp") or raw.get("eventTime") or section(raw, "metadata")["creationTimestamp"]
    about = section(raw, "involvedObject").get("uid", "")
    return EventView(about=about, reason=raw.get("reason", ""), message=raw.get("message", ""), last=parse_time(last))
