"""Deterministic names and labels of everything the operator makes.

A name that follows from the job's identity makes creation idempotent: AlreadyExists with our uid as owner means done.
"""

from typing import Literal

from finetune_api.job import GROUP

Kind = Literal["prepare", "train"]
"""What an attempt does. Each kind has attempts of its own, counted apart."""

MANAGER = "finetune-operator"
"""Field manager of every server-side apply, and app.kubernetes.io/managed-by."""

LABEL_JOB = f"{GROUP}/job"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_KIND = f"{GROUP}/kind"
"""Absent on what releases made that did not prepare: train."""
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_UID = f"{GROUP}/job-uid"
LABEL_MANAGED = f"{GROUP}/managed"
MANAGED_SELECTOR = f"{LABEL_MANAGED}=true"

JOB_ANNOTATION = f"{GROUP}/resolved-job"
ATTEMPT_ANNOTATION = f"{GROUP}/attempt-facts"
"""Of a pod: what its container reads as files."""

SERVICE_ACCOUNT = "finetune-trainer"
CONTAINER = "trainer"


def attempt_job(kind: Kind, name: str, uid: str, attempt: int) -> str:
    """Name of the Job of an attempt, and of its headless Service. With '-<rank>-' behind it, it stays below the 58
    characters at which the Job controller would cut pod names. The chart's admission policy knows these names."""
    return f"{name}-{uid[:5]}-{'p' if kind == 'prepare' else ''}{attempt}"


def job_labels(name: str, stage: str) -> dict[str, str]:
    """Labels of what belongs to a FineTuneJob: ours only, never copies of its own (Argo CD would adopt them)."""
    return {
        LABEL_MANAGED: "true",
        LABEL_JOB: name,
        LABEL_STAGE: stage,
        "app.kubernetes.io/name": "finetune-trainer",
        "app.kubernetes.io/part-of": MANAGER,
        "app.kubernetes.io/managed-by": MANAGER,
    }


def child_labels(name: str, stage: str, kind: Kind, attempt: int) -> dict[str, str]:
    """Labels of an attempt's objects."""
    component = "preparation" if kind == "prepare" else "training"
    return {
        **job_labels(name, stage),
        LABEL_KIND: kind,
        LABEL_ATTEMPT: str(attempt),
        "app.kubernetes.io/component": component,
    }
