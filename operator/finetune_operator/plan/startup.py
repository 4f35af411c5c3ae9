"""Why an attempt isn't fully running yet, and what to do: from its pods and the events about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from finetune_api.status import Reason

from finetune_operator.names import Kind
from finetune_operator.observed import EventView, PodView

QUIET_SECONDS = 15
"""Pods that are missing, or hang in ContainerCreating, for so long are looked up in the events."""

BEGINNING = "The attempt's pods are being started."
"""One text for everything that is usual at the start, so that the status isn't written for each little step."""

_ADVICE: dict[Kind, str] = {
    "prepare": "Check spec.prepare, the placement in spec.resources, the claims that the job names, or free nodes.",
    "train": "Check spec.resources (GPUs, cpu, memory, nodeSelector, tolerations), the claims it names, or free nodes.",
}
_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_TAINTED = "DeletionByTaintManager"
_MOUNT = {"FailedMount", "FailedAttachVolume", "FailedMapVolume"}


@dataclass(frozen=True)
class Finding:
    """What is to be said of the attempt's pods."""

    running: bool
    reason: Reason
    message: str


def look(pods: Sequence[PodView], events: Sequence[EventView], nodes: int) -> Finding:
    """The most telling fact about an attempt of so many pods. `events` may be empty: they are listed only when the pods
    don't explain themselves."""
    lost = [pod for pod in pods if pod.status_reason == "NodeLost" or (pod.disruption or "").startswith(_TAINTED)]
    lost = [pod for pod in lost if not pod.gone]
    if lost:
        return _no(
            Reason.NODE_LOST,
            f"{lost[0].called(nodes)}: node {lost[0].node} does not answer; waiting for"
            " Kubernetes to give the pod up. Nothing to do: the next attempt resumes.",
        )
    ended = [pod for pod in pods if pod.gone or pod.exit_code is not None]
    if ended:
        return _no(Reason.ENDING, f"{ended[0].called(nodes)} has ended; waiting for the attempt's other pods.")
    for pod in sorted(pods, key=lambda pod: pod.rank):
        finding = _container(pod, nodes)
        if finding:
            return finding
    unplaced = [pod for pod in pods if pod.unschedulable is not None]
    if unplaced:
        return _unplaced(unplaced, pods, nodes)
    if len(pods) < nodes:
        return _missing(pods, events, nodes)
    if all(pod.running for pod in pods):
        return Finding(True, Reason.RUNNING, "All pods run.")
    return _creating(next(pod for pod in pods if not pod.running), events, nodes)


def _no(reason: Reason, message: str) -> Finding:
    return Finding(False, reason, message)


def _container(pod: PodView, nodes: int) -> Finding | None:
    if pod.waiting_reason in _IMAGE:
        return _no(
            Reason.IMAGE_PULL_FAILED,
            f"{pod.called(nodes)}: {pod.waiting_message or pod.waiting_reason}. Check"
            " spec.resources.image, imagePullSecrets and the registry.",
        )
    if pod.waiting_reason in _CONFIG:
        return _no(
            Reason.CONFIG_MISSING,
            f"{pod.called(nodes)}: {pod.waiting_message or pod.waiting_reason}. Create"
            " what is missing, or correct spec.resources.env and spec.secrets.",
        )
    return None


def _unplaced(unplaced: Sequence[PodView], pods: Sequence[PodView], nodes: int) -> Finding:
    first = min(unplaced, key=lambda pod: pod.rank)
    advice = _ADVICE[first.kind]
    placed = [pod.rank for pod in pods if pod.unschedulable is None]
    if placed:
        return _no(
            Reason.PARTLY_SCHEDULED,
            f"{len(placed)} of {nodes} pods have a node and hold it; {_without(placed, nodes)} not:"
            f" {first.unschedulable} {advice}",
        )
    return _no(Reason.UNSCHEDULABLE, f"{first.called(nodes)}: {first.unschedulable} {advice}")


def _without(there: Sequence[int], nodes: int) -> str:
    """The node ranks that are not among these, as 'node ranks 1, 4-7 have'."""
    absent = sorted(set(range(nodes)) - set(there))
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(absent), key=lambda item: item[1] - item[0])]
    said = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:20])
    return f"node rank {said} has" if len(absent) == 1 else f"node ranks {said}{', ...' * (len(runs) > 20)} have"


def _missing(pods: Sequence[PodView], events: Sequence[EventView], nodes: int) -> Finding:
    refused = _latest(events, {"FailedCreate"})
    if refused:
        absent = _without([pod.rank for pod in pods], nodes)
        some = f" ({len(pods)} of {nodes} are there; {absent} none)" if pods else ""
        return _no(
            Reason.PODS_REJECTED,
            f"The cluster refuses the pods{some}: {refused.message}. Check the namespace's"
            " quota, its Pod Security level, admission policies and the service account.",
        )
    return _no(Reason.STARTING, BEGINNING)


def _creating(pod: PodView, events: Sequence[EventView], nodes: int) -> Finding:
    mount = _latest(events, _MOUNT)
    if mount:
        return _no(
            Reason.VOLUME_NOT_MOUNTED,
            f"{pod.called(nodes)}: {mount.message}. Check the claims, Secrets and ConfigMaps that the job mounts.",
        )
    if _latest(events, {"Pulling"}) and not _latest(events, {"Pulled"}):
        return _no(
            Reason.PULLING_IMAGE,
            f"{pod.called(nodes)} pulls its image on node {pod.node}; the first time on a node this takes minutes.",
        )
    return _no(Reason.STARTING, BEGINNING)


def _latest(events: Sequence[EventView], reasons: set[str]) -> EventView | None:
    fitting = [event for event in events if event.reason in reasons]
    return max(fitting, key=lambda event: event.last, default=None)


def needs_events(pods: Sequence[PodView], nodes: int, since: datetime, now: datetime) -> bool:
    """Whether the pods alone don't say why nothing happens, for longer than is usual."""
    quiet = (now - since).total_seconds() >= QUIET_SECONDS
    unexplained = len(pods) < nodes or any(
        not pod.running and not pod.gone and pod.unschedulable is None and not _container(pod, nodes) for pod in pods
    )
    return quiet and unexplained
