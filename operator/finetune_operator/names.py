"""Deterministic names and labels of everything the operator makes.

A name that follows from the job's identity makes creation idempotent: AlreadyExists with our uid as owner means done.
"""

from finetune_api.job import GROUP

MANAGER = "finetune-operator"
"""Field manager of every server-side apply, and app.kubernetes.io/managed-by."""

LABEL_JOB = f"{GROUP}/job"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_MANAGED = f"{GROUP}/managed"
MANAGED_SELECTOR = f"{LABEL_MANAGED}=true"

SERVICE_ACCOUNT = "finetune-trainer"
CONTAINER = "trainer"


def training_job(name: str, uid: str, attempt: int) -> str:
    """Name of the Job of an attempt, and of its headless Service. With '-<rank>-' behind it, it stays below the 58
    characters at which the Job controller would cut pod names."""
    return f"{name}-{uid[:5]}-{attempt}"


def child_labels(name: str, stage: str, attempt: int) -> dict[str, str]:
    """Labels of an attempt's objects: ours only, never copies of the FineTuneJob's (Argo CD would adopt them)."""
    return {
        LABEL_MANAGED: "true",
        LABEL_JOB: name,
        LABEL_STAGE: stage,
        LABEL_ATTEMPT: str(attempt),
        "app.kubernetes.io/name": "finetune-trainer",
        "app.kubernetes.io/component": "training",
        "app.kubernetes.io/part-of": MANAGER,
        "app.kubernetes.io/managed-by": MANAGER,
    }
