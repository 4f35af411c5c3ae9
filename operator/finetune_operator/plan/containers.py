"""What others put into the pods of an attempt: containers that the job does not ask for, and changed resources.

The trainer's container alone decides how an attempt ends. Another container can keep it from starting, and it can keep
its pod, with the GPUs, after the trainer has ended.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_api.kubernetes import quantity

from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.container import OtherContainer
from finetune_operator.views.pod import PodView

OTHERS_SECONDS = 30
"""How long other containers may run after the trainer, for example to send what they have collected. It is the time
that Kubernetes gives a container to end by default. Until then the attempt holds its GPUs."""
NAMED = 5
"""Containers that a message names."""
NOT_OURS = "A webhook or policy of the cluster added this container; the job does not ask for it."


def lingering(pod: PodView) -> list[OtherContainer]:
    """The containers that keep the pod, although its trainer has ended. Sidecar containers end by themselves, and so do
    all containers of a pod that is being deleted."""
    if pod.exit_code is None or pod.gone or pod.deleting:
        return []
    return [other for other in pod.others if other.kind == "container" and not other.terminated]


def ends_at(pods: Sequence[PodView], nodes: int) -> datetime | None:
    """When the operator ends an attempt of so many pods, because all trainers have ended or one of them has failed, and
    other containers keep a pod. None: the attempt goes its way without the operator."""
    kept = [pod for pod in pods if lingering(pod)]
    failed = [_ended(pod) for pod in kept if pod.exit_code != 0]
    over = [_ended(pod) for pod in pods if pod.gone or pod.exit_code is not None]
    if failed:
        return min(failed) + timedelta(seconds=OTHERS_SECONDS)
    if kept and len(over) == len(pods) >= nodes:
        return max(over) + timedelta(seconds=OTHERS_SECONDS)
    return None


def _ended(pod: PodView) -> datetime:
    """When the trainer of the pod ended; if nobody knows, long ago."""
    return pod.ended or pod.created


def note(pods: Sequence[PodView], nodes: int) -> str:
    """Why the operator ends an attempt whose trainer has ended, as sentences."""
    kept = next(pod for pod in pods if lingering(pod))
    names = ", ".join(other.name for other in lingering(kept)[:NAMED])
    return (
        f"{kept.title(nodes)}: the operator deleted the child job, because the trainer had ended and other containers"
        f" did not end within {OTHERS_SECONDS} s: {names}. The job does not ask for them. Let them be added as sidecar"
        " containers (restartPolicy Always), or not at all."
    )


def failed(pod: PodView) -> OtherContainer | None:
    """The other container that failed, and made the pod Failed. A sidecar container never does."""
    failures = (other for other in pod.others if other.terminated and other.exit_code)
    return next((other for other in failures if other.kind != "sidecar container"), None)


def failure(pod: PodView, other: OtherContainer, nodes: int) -> str:
    """How another container failed, as sentences. Its termination message is not repeated: it may be any text."""
    why = f" ({other.terminated_reason})" if other.terminated_reason not in ("", "Error") else ""
    return (
        f"{pod.title(nodes)}: {other.title} failed with exit code {other.exit_code}{why}. {NOT_OURS} See its log:"
        f" kubectl logs {pod.name} -c {other.name} -n {pod.key[0]}"
    )


def before_trainer(pod: PodView) -> OtherContainer | None:
    """The container that the trainer waits for: the first init container that has not ended, or sidecar container that
    has not started."""
    if pod.running or pod.gone or pod.exit_code is not None or not pod.node:
        return None
    for other in pod.others:
        over = other.started if other.kind == "sidecar container" else other.terminated
        if other.kind != "container" and not over:
            return other
    return None


def changed_requests(pod: PodView, child: ChildJobView) -> str:
    """How the requests of a pod differ from those of its template, as a sentence; empty if they do not."""
    differences = [
        f"{name} {pod.requests.get(name, '0')} instead of {child.requests.get(name, '0')}"
        for name in sorted({*pod.requests, *child.requests})
        if not equal(pod.requests.get(name, "0"), child.requests.get(name, "0"))
    ]
    parts = [f"the trainer requests {', '.join(differences)}"] if differences else []
    for other in pod.others:
        if other.requests:
            amounts = ", ".join(f"{name} {amount}" for name, amount in sorted(other.requests.items()))
            parts.append(f"{other.title} requests {amounts}")
    if not parts:
        return ""
    return f"The cluster changed the pod (a LimitRange, an autoscaler or a webhook): {'; '.join(parts)}."


def equal(first: str, second: str) -> bool:
    """Whether two quantities are the same amount."""
    try:
        return quantity(first) == quantity(second)
    except (ValueError, KeyError):
        return first == second
