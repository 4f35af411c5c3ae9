"""Deterministic names and labels of every object that the operator creates.

A name derived from the job's identity makes creation idempotent: AlreadyExists with our uid as owner means done.
"""

import hashlib
from typing import Literal

from finetune_api.job import GROUP

Kind = Literal["prepare", "train"]
"""What an attempt does. The attempts of each kind are counted separately."""

MANAGER = "finetune-operator"
"""Field manager of every server-side apply, and app.kubernetes.io/managed-by."""

LABEL_JOB = f"{GROUP}/job"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_KIND = f"{GROUP}/kind"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_UID = f"{GROUP}/job-uid"
LABEL_MANAGED = f"{GROUP}/managed"
LABEL_ELECTION = f"{GROUP}/leader-election"
"""Label of the operator's own pods: they work only while they hold the Lease."""
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
LABEL_WORKLOAD_JOB = "kueue.x-k8s.io/job-uid"
"""Label of a Workload: the uid of the Job that Kueue made it for."""
MANAGED_SELECTOR = f"{LABEL_MANAGED}=true"

JOB_ANNOTATION = f"{GROUP}/resolved-job"
ATTEMPT_ANNOTATION = f"{GROUP}/attempt-facts"
"""Annotations of a pod that its container reads as files."""
PRESETS_ANNOTATION = f"{GROUP}/presets"
"""Annotation of a child job: what the job got from the presets, in case that somebody wipes the status."""

INSTALLATION_ANNOTATION = f"{GROUP}/installation"
"""Annotation of the trainer's role: the installation that serves the scope of the role."""

SERVICE_ACCOUNT = "finetune-trainer"
CONTAINER = "trainer"


def job_prefix(name: str, uid: str) -> str:
    """What the names of all child jobs of a FineTuneJob, and of their pods, begin with."""
    return f"{name}-{uid[:5]}-"


def attempt_job(kind: Kind, name: str, uid: str, attempt: int) -> str:
    """Name of the child job of an attempt, and of its headless Service. With '-<rank>-' appended it is shorter than the
    58 characters at which the Job controller cuts pod names. The chart's admission policy knows these names."""
    return f"{job_prefix(name, uid)}{'p' if kind == 'prepare' else ''}{attempt}"


def notification_name(name: str, uid: str, completed: str) -> str:
    """Name of the Job that tells the end of a FineTuneJob. A job that is re-opened ends again, at another time."""
    return f"{job_prefix(name, uid)}n{hashlib.sha256(completed.encode()).hexdigest()[:8]}"


def job_labels(name: str, stage: str) -> dict[str, str]:
    """Labels of the objects of a FineTuneJob. Never copies of its own labels: Argo CD would adopt the objects."""
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
