"""The pods of a job, and what stands before their lines."""

from typing import Any

from finetune_cli import paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.output import paint

INDEX = "batch.kubernetes.io/job-completion-index"
COLOURS = ("cyan", "green", "yellow", "bold")


def of_job(client: Client, job: Object) -> list[Object]:
    """All pods of the job that still exist, in the order of their attempts and ranks."""
    selector = f"{paths.LABEL_JOB}={job['metadata']['name']}"
    found = client.items(paths.pods(job["metadata"]["namespace"]), labelSelector=selector)
    return sorted((pod for pod in found if belongs(pod, job)), key=order)


def belongs(pod: Object, job: Object) -> bool:
    """Whether a pod is of this job, and not of an earlier job of the same name: pod names begin with the job's uid."""
    return str(pod["metadata"]["name"]).startswith(f"{job['metadata']['name']}-{job['metadata']['uid'][:5]}-")


def order(pod: Object) -> tuple[Any, ...]:
    """Prepare attempts before training attempts, then by number and rank; a Job that starts again has newer pods."""
    return (kind(pod) != "prepare", attempt(pod), pod["metadata"].get("creationTimestamp") or "", rank(pod))


def kind(pod: Object) -> str:
    """prepare or train."""
    return str((pod["metadata"].get("labels") or {}).get(paths.LABEL_KIND, "train"))


def attempt(pod: Object) -> int:
    """The number of the attempt."""
    return int((pod["metadata"].get("labels") or {}).get(paths.LABEL_ATTEMPT, 0))


def rank(pod: Object) -> int:
    """The index of the pod within its attempt."""
    found = pod["metadata"].get("annotations") or {}
    return int(found.get(INDEX) or (pod["metadata"].get("labels") or {}).get(INDEX) or 0)


def prefix(pod: Object) -> str:
    """What stands before each line, such as train-2/0: kind, attempt, and the index of the pod."""
    return paint(f"{kind(pod)}-{attempt(pod)}/{rank(pod)}", COLOURS[rank(pod) % len(COLOURS)])


def selected(pod: Object, attempts: list[int], ranks: list[int], kinds: list[str]) -> bool:
    """Whether the user asked for this pod."""
    return (
        (not attempts or attempt(pod) in attempts)
        and (not ranks or rank(pod) in ranks)
        and (not kinds or kind(pod) in kinds)
    )
