"""Everything that a plan may look at besides the FineTuneJob itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from finetune_operator.names import Kind
from finetune_operator.views.child_job import AcceptedTerms, ChildJobView
from finetune_operator.views.claim import ClaimView
from finetune_operator.views.job import JobView
from finetune_operator.views.pod import EventView, PodView
from finetune_operator.views.presets import PresetsView
from finetune_operator.views.service import ServiceView
from finetune_operator.views.workload import QueueView


class Read(StrEnum):
    """A live read from the API server, for moments in which the cache is not enough."""

    JOB = "the FineTuneJob"
    CHILD_JOB = "the child job of an attempt"
    PODS = "the pods of an attempt"
    WORKSPACE = "the workspace's claim"
    GPU_MEMORY = "the GPU memory that the nodes' labels state"
    DEPENDENCIES = "the jobs whose artifacts the job uses, and the claims that hold these"
    SERVICES = "the Services of the job's attempts"
    RIVALS = "the jobs that hold some nodes and lack others"
    """Not from the API server: the watches have shown it."""
    NOTIFICATION = "the Job that tells the end of the job"
    WORKLOAD = "what Kueue says about the child job of an attempt"
    PRESETS = "the presets of the namespace"
    ACCEPTED_TERMS = "what the newest child job says about the job's acceptance"


@dataclass(frozen=True)
class Dependencies:
    """The jobs that a job waits for."""

    jobs: Mapping[str, JobView] = field(default_factory=dict)
    """Those that exist, by name."""
    claims: Mapping[str, ClaimView] = field(default_factory=dict)
    """The claims of their artifacts, by name. A claim that does not exist is absent."""
    cycle: tuple[str, ...] = ()
    """Names of jobs that wait for each other, from the job back to itself."""


@dataclass(frozen=True)
class Snapshot:
    """The state of the cluster: from the cache, and from live reads where a plan needed them."""

    child_jobs: tuple[ChildJobView, ...] = ()
    """Child jobs of this FineTuneJob (by uid), of any kind and attempt."""
    pods: tuple[PodView, ...] = ()
    """Pods of this FineTuneJob."""
    given_up: tuple[PodView, ...] = ()
    """Pods of this FineTuneJob on lost nodes, for which nobody waits any more (`plan.lost_nodes`)."""
    rivals: tuple[JobView, ...] = ()
    """`Read.RIVALS`."""
    events: tuple[EventView, ...] = ()
    """Those about child jobs and pods that a plan named in `Plan.events_about`, as far as they are known."""
    refusal: str = ""
    """Why the attempt's objects cannot be created: the API server's message."""
    invalid: bool = False
    """Whether the refusal is final: an object that is made from the spec is invalid."""
    workspace: ClaimView | None = None
    """`Read.WORKSPACE`; None: no such claim, or not read."""
    gpu_memory_bytes: int | None = None
    """`Read.GPU_MEMORY`; None: not known, or not read."""
    dependencies: Dependencies = Dependencies()
    """`Read.DEPENDENCIES`; before, the jobs that the watches have shown."""
    presets: PresetsView | None = None
    """None: the namespace has none."""
    services: tuple[ServiceView, ...] = ()
    """`Read.SERVICES`."""
    notified: bool = False
    """`Read.NOTIFICATION`: whether the Job exists."""
    queue: QueueView | None = None
    """`Read.WORKLOAD`; None: not read."""
    accepted_terms: AcceptedTerms | None = None
    """`Read.ACCEPTED_TERMS`: recovers a status that somebody wiped."""
    reads: frozenset[Read] = frozenset()
    """The live reads that are done."""
    departed: tuple[PodView, ...] = ()
    """Pods of this FineTuneJob that are deleted, as they were last seen: only for the account of their GPUs."""

    def child_job(self, kind: Kind, attempt: int) -> ChildJobView | None:
        return next((child for child in self.child_jobs if (child.kind, child.attempt) == (kind, attempt)), None)

    def child_jobs_of(self, kind: Kind) -> tuple[ChildJobView, ...]:
        return tuple(child for child in self.child_jobs if child.kind == kind)

    def pods_of(self, kind: Kind, attempt: int) -> tuple[PodView, ...]:
        return tuple(pod for pod in self.pods if (pod.kind, pod.attempt) == (kind, attempt))
