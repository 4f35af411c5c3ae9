"""What a plan consists of: a status, a step, and deadlines; or a need for more facts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from finetune_api.resources import ResourcesSpec
from finetune_api.status import Attempt, FineTuneJobStatus, Progress

from finetune_operator.manifests.attempt import Manifest
from finetune_operator.names import Kind
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.service import ServiceView
from finetune_operator.views.snapshot import Read, Snapshot

SHORTEST_WAIT_SECONDS = 0.1
"""The clock of the queue may be a little ahead of the clock of the deadlines."""


@dataclass(frozen=True)
class Create:
    """Create the attempt's objects. The child job comes last."""

    manifests: tuple[Manifest, ...]
    note: str = ""
    """What an administrator should know about it; empty if there is nothing."""


@dataclass(frozen=True)
class Delete:
    """Delete a child job with its pods. The child job disappears after its pods."""

    child_job: ChildJobView


@dataclass(frozen=True)
class DeleteService:
    """Delete the Service of an attempt that is over."""

    service: ServiceView


@dataclass(frozen=True)
class Notify:
    """Create the Job that tells the end of the FineTuneJob."""

    manifest: Manifest


@dataclass(frozen=True)
class SetProgress:
    """Write status.progress in place of a trainer that will not; None removes it."""

    progress: Progress | None


@dataclass(frozen=True)
class Plan:
    """The status to write, then the step to take, then the moments at which time alone changes the plan."""

    status: FineTuneJobStatus
    step: Create | Delete | DeleteService | Notify | SetProgress | None = None
    deadlines: tuple[datetime, ...] = ()
    """Each decision reports its own; the earliest counts."""
    events_about: frozenset[str] = frozenset()
    """Uids of the objects of which only events may tell why the attempt does not run. News about them change the
    plan."""

    def look_again(self, now: datetime) -> float | None:
        """Seconds until the earliest deadline. None: only an event changes the plan."""
        if not self.deadlines:
            return None
        return max((min(self.deadlines) - now).total_seconds(), SHORTEST_WAIT_SECONDS)


@dataclass(frozen=True)
class Need:
    """The plan cannot decide before these live reads are done."""

    reads: frozenset[Read]
    kind: Kind | None = None
    attempt: Attempt | None = None
    """The attempt that `Read.CHILD_JOB` and `Read.PODS` are about, and its kind."""
    node_selector: Mapping[str, str] | None = None
    """Labels of the nodes that `Read.GPU_MEMORY` is about."""


def missing(snapshot: Snapshot, read: Read, kind: Kind | None = None, attempt: Attempt | None = None) -> Need | None:
    """The need for a live read, unless the snapshot has it."""
    return None if read in snapshot.reads else Need(frozenset({read}), kind, attempt)


def missing_gpu_memory(snapshot: Snapshot, resources: ResourcesSpec) -> Need | None:
    """The need for the memory of the GPUs that a job may get."""
    need = missing(snapshot, Read.GPU_MEMORY)
    return need and replace(need, node_selector=resources.node_selector)
