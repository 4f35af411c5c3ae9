"""The metrics of the operator, as GET /metrics shows them. docs/monitoring.md lists them; a test compares both.

The leader alone shows the metrics of FineTuneJobs, so that a sum over the operators counts nothing twice. The
counters add only what this process has seen as the leader.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import get_args

from finetune_api.exit_codes import EndClass
from finetune_api.stages import Stage
from finetune_api.status import Reason

from finetune_operator.exposition import Family, Histogram, Labels, Samples, render
from finetune_operator.job_metrics import JOB_FAMILIES

JobSamples = Mapping[str, Samples]
"""The samples of the families of `job_metrics`, by name."""

LIFE_SECONDS = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)
WORK_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

CAUSES = (
    Reason.DISRUPTED,
    Reason.HUNG,
    Reason.INTERNAL_ERROR,
    Reason.SOURCE_UNREACHABLE,
    Reason.GPU_OUT_OF_MEMORY,
    Reason.OUT_OF_MEMORY,
    Reason.KILLED,
    Reason.JOB_DELETED,
    Reason.START_DEADLINE_EXCEEDED,
    Reason.UNKNOWN,
)
"""Ends after which a job usually continues."""
ENDS = (*(end.value.replace(" ", "_") for end in EndClass), "user")
"""How attempts end: see `milestones.how_it_ended`."""

LEADER = Family("finetune_operator_leader", "gauge", "1 if this process holds the Lease and works, 0 on standby.")
FAILURES = Family("finetune_operator_reconcile_failures_total", "counter", "Reconciles that failed.", ("reason",))
RESTARTS = Family("finetune_operator_trainer_restarts_total", "counter", "Restarts in the same pods.", ("reason",))
UNREADABLE = Family(
    "finetune_operator_unreadable_objects_total", "counter", "Versions of objects that were skipped.", ("kind",)
)
ORPHANS = Family("finetune_operator_orphaned_child_jobs", "gauge", "Child jobs whose FineTuneJob does not exist.")
RECONCILE = Family("finetune_operator_reconcile_seconds", "histogram", "Time that a reconcile of a FineTuneJob took.")
QUEUE = Family("finetune_operator_queue_depth", "gauge", "FineTuneJobs that are due and wait for a worker.")
LAG = Family(
    "finetune_operator_watch_lag_seconds", "gauge", "How long a change that a watch must show has been missing."
)
CALLS = Family(
    "finetune_operator_api_calls_total",
    "counter",
    "Calls to the API server, without watches and the Lease. Code 0: no answer.",
    ("verb", "code"),
)
ATTEMPTS = Family(
    "finetune_attempts_total", "counter", "Training attempts that have ended, by how.", ("stage", "end_class")
)
FIRST_STEP = Family(
    "finetune_time_to_first_step_seconds", "histogram", "Time from the creation of a FineTuneJob to its first step."
)
RECOVERY = Family(
    "finetune_recovery_seconds", "histogram", "Time from the end of an attempt to the next new step.", ("cause",)
)
QUEUED = Family("finetune_queue_seconds", "histogram", "Time for which a FineTuneJob waited for its quota.")
GPU_SECONDS = Family(
    "finetune_gpu_seconds_total", "counter", "Time of GPUs that jobs held, by use.", ("namespace", "stage", "use")
)

FAMILIES = (
    LEADER,
    RECONCILE,
    FAILURES,
    QUEUE,
    LAG,
    CALLS,
    UNREADABLE,
    ORPHANS,
    RESTARTS,
    ATTEMPTS,
    FIRST_STEP,
    RECOVERY,
    QUEUED,
    GPU_SECONDS,
    *JOB_FAMILIES,
)
"""Everything that /metrics may show."""


@dataclass(frozen=True)
class Metrics:
    """The counters of one process, and where its gauges come from."""

    failures: Counter[str] = field(default_factory=Counter)
    """Reconciles that failed, by the reason that the status of the job tells."""

    restarts: Counter[str] = field(default_factory=Counter)
    """Restarts of trainers in the same pods, by the reason of the end before."""

    unreadable: Counter[str] = field(default_factory=Counter)
    """Versions of objects that could not be read, by kind."""

    calls: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Calls to the API server, by verb and code."""

    attempts: Counter[Labels] = field(default_factory=Counter)
    """Attempts that have ended, by stage and class of the end."""

    reconcile: Histogram = field(default_factory=lambda: Histogram(WORK_SECONDS))
    first_step: Histogram = field(default_factory=lambda: Histogram(LIFE_SECONDS, [()]))
    recovery: Histogram = field(default_factory=lambda: Histogram(LIFE_SECONDS, [(cause,) for cause in CAUSES]))
    queued: Histogram = field(default_factory=lambda: Histogram(LIFE_SECONDS, [()]))

    leading: Callable[[], bool] = lambda: False
    """Whether this process is the leader."""

    orphans: Callable[[], int] = lambda: 0
    """How many child jobs belong to no FineTuneJob that exists."""

    depth: Callable[[], int] = lambda: 0
    """How many jobs wait for a worker."""

    lag: Callable[[], float] = lambda: 0.0
    """Seconds for which a watch has owed a change."""

    gpu_seconds: Callable[[], Samples] = dict
    """Time of GPUs, by namespace, stage and use. An operator on standby counts it, too."""

    jobs: Callable[[], JobSamples] = dict
    """The metrics of the jobs at the moment."""

    def render(self, *, open_metrics: bool = False) -> str:
        return render(self._families(), open_metrics=open_metrics)

    def _families(self) -> Iterator[tuple[Family, Samples | Histogram]]:
        leading = self.leading()
        yield LEADER, {(): float(leading)}
        yield RECONCILE, self.reconcile
        yield FAILURES, _labelled(self.failures, (Reason.API_SERVER_ERROR, Reason.OPERATOR_ERROR))
        yield QUEUE, {(): self.depth()}
        yield LAG, {(): self.lag()}
        yield CALLS, {(verb, str(code)): count for (verb, code), count in self.calls.items()}
        yield UNREADABLE, _labelled(self.unreadable, ("FineTuneJob", "Job", "Pod"))
        yield ORPHANS, {(): self.orphans()}
        yield RESTARTS, _labelled(self.restarts, CAUSES)
        if not leading:
            return
        yield ATTEMPTS, {**dict.fromkeys(product(get_args(Stage), ENDS), 0), **self.attempts}
        yield FIRST_STEP, self.first_step
        yield RECOVERY, self.recovery
        yield QUEUED, self.queued
        yield GPU_SECONDS, self.gpu_seconds()
        samples = self.jobs()
        for family in JOB_FAMILIES:
            yield family, samples.get(family.name, {})


def _labelled(counts: Counter[str], known: Iterable[str]) -> Samples:
    """With zeros for known labels: Prometheus sees no increase to a first value."""
    return {(label,): counts[label] for label in {*known, *counts}}
