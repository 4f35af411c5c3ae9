"""What /metrics says of FineTuneJobs at the moment, from their status.

How many there are; how long each has been in its phase, until it has ended; and at most 15 series of each that runs.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from finetune_api.live_metrics import LABELS, PREFIX, PROGRESS_METRICS, number, progress_values
from finetune_api.status import Phase

from finetune_operator.exposition import Family, Labels, Samples
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Raw, Unreadable, entries, parse_time, section

ENDED = (Phase.SUCCEEDED, Phase.FAILED)
PHASE_CONDITIONS = ("Accepted", "Prepared", "QuotaReserved", "Running", "Suspended")
"""The phase is a summary of these conditions: it has lasted since the last of them changed."""

JOBS = Family("finetune_jobs", "gauge", "FineTuneJobs, by phase.", ("namespace", "stage", "phase"))
PHASE = Family(
    "finetune_job_phase_seconds",
    "gauge",
    "How long a job has been in its phase, unless it has ended.",
    (*LABELS, "phase"),
)
INFO = Family(
    "finetune_job_info", "gauge", "1, with the workspace of a running job.", (*LABELS, "persistentvolumeclaim")
)
LIVE = {
    "gpus": "GPUs that the job holds.",
    "attempt": "Number of the training attempt.",
    "restarts": "Restarts in the same pods, in this attempt.",
    "checkpoint_age_seconds": "Time since the newest checkpoint, or since the attempt runs: what a crash would lose.",
    "checkpoint_save_seconds": "Time that the last save took.",
    **PROGRESS_METRICS,
}
LIVE_FAMILIES = {
    suffix: Family(f"{PREFIX}{suffix}", "gauge", explanation, LABELS) for suffix, explanation in LIVE.items()
}
JOB_FAMILIES = (JOBS, PHASE, INFO, *LIVE_FAMILIES.values())


def job_samples(
    jobs: Iterable[JobView], now: datetime, per_job: Literal["status", "pods", "none"] = "status"
) -> dict[str, Samples]:
    """The samples of all families, by name. With "pods", the trainers serve what their progress has."""
    samples: dict[str, dict[Labels, float]] = defaultdict(dict)
    counts: Counter[Labels] = Counter()
    for job in jobs:
        stage, phase = str(job.spec.get("stage")), str(job.status.get("phase") or Phase.PENDING)
        counts[job.namespace, stage, phase] += 1
        if per_job == "none" or phase in ENDED:
            continue
        of_job = (job.namespace, job.name, stage)
        if (since := phase_since(job.status)) is not None:
            samples[PHASE.name][*of_job, phase] = _seconds(now, since)
        if phase != Phase.RUNNING:
            continue
        samples[INFO.name][*of_job, job.claim] = 1
        shown = _live(job, now)
        if per_job == "status":
            shown |= progress_values(section(job.status, "progress"))
        for suffix, value in shown.items():
            if value is not None:
                samples[LIVE_FAMILIES[suffix].name][of_job] = value
    return {JOBS.name: counts, **samples}


def phase_since(status: Raw) -> datetime | None:
    """When the job came into its phase."""
    times = [_time(c.get("lastTransitionTime")) for c in conditions(status) if c.get("type") in PHASE_CONDITIONS]
    return max((time for time in times if time is not None), default=None)


def conditions(status: Raw) -> list[Raw]:
    return entries(status, "conditions")


def attempts(status: Raw) -> list[Raw]:
    """The entries of the training attempts."""
    return entries(status, "attempts")


def _live(job: JobView, now: datetime) -> dict[str, float | None]:
    """The values of a running job; None where its status does not have them (yet)."""
    checkpoint, resources = section(job.status, "checkpoint"), section(job.spec, "resources")
    attempt: Raw = next(reversed(attempts(job.status)), {})
    safe = max(filter(None, (_time(checkpoint.get("time")), _time(attempt.get("runningTime")))), default=None)
    nodes, gpus = number(resources.get("nodes", 1)), number(resources.get("gpusPerNode", 1))
    return {
        "gpus": nodes * gpus if nodes is not None and gpus is not None else None,
        "attempt": number(job.status.get("attempt")),
        "restarts": number(section(attempt, "restarts").get("number", 0)),
        "checkpoint_age_seconds": _seconds(now, safe) if safe else None,
        "checkpoint_save_seconds": number(checkpoint.get("seconds")),
    }


def _time(value: Any) -> datetime | None:
    try:
        return parse_time(value) if isinstance(value, str) else None
    except Unreadable:
        return None


def _seconds(now: datetime, since: datetime) -> float:
    return max(0.0, (now - since).total_seconds())
