"""What Kueue says about a child job: its Workload, and its place in the queue."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from finetune_operator.views.metadata import Raw, metadata, section


@dataclass(frozen=True)
class Condition:
    """A condition of a Workload, in Kueue's own words."""

    true: bool
    reason: str
    message: str


@dataclass(frozen=True)
class WorkloadView:
    """The Workload that Kueue made for a child job."""

    name: str
    queue: str
    """Name of its LocalQueue; empty if the child job names none."""
    active: bool
    """False: somebody, or Kueue, has taken it out of the queue for good."""
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    """Admission checks that are not ready, with what they say."""
    position: int | None = None
    """Its place in the LocalQueue, from 1. None: not served, or far behind."""

    def condition(self, kind: str) -> Condition | None:
        return self.conditions.get(kind)

    def is_true(self, kind: str) -> bool:
        found = self.conditions.get(kind)
        return found is not None and found.true


@dataclass(frozen=True)
class QueueView:
    """What could be read about a child job that is suspended."""

    workload: WorkloadView | None = None
    unknown: Literal["", "no Kueue", "no right"] = ""
    """Why no Workload could be read: the cluster does not serve them, or the operator may not read them."""


def workload_view(raw: Raw) -> WorkloadView:
    spec, status = section(raw, "spec"), section(raw, "status")
    conditions = {
        str(found.get("type")): Condition(
            found.get("status") == "True", str(found.get("reason", "")), str(found.get("message", ""))
        )
        for found in status.get("conditions") or []
    }
    checks = [check for check in status.get("admissionChecks") or [] if check.get("state") != "Ready"]
    return WorkloadView(
        name=metadata(raw)["name"],
        queue=str(spec.get("queueName") or ""),
        active=spec.get("active") is not False,
        conditions=conditions,
        checks=tuple(f"{c.get('name')} is {c.get('state')}: {c.get('message')}".rstrip(": ") for c in checks),
    )


def position_of(name: str, summary: Raw) -> int | None:
    """The place of a Workload in the answer of Kueue's visibility API."""
    for item in summary.get("items") or []:
        place = item.get("positionInLocalQueue")
        if section(item, "metadata").get("name") == name and isinstance(place, int):
            return place + 1
    return None
