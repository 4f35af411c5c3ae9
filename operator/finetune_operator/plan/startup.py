"""Why an attempt does not fully run yet, and what to do: from its pods and the events about them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from finetune_api.status import Reason

from finetune_operator.manifests.outbound import CA_VOLUME
from finetune_operator.names import LABEL_MANAGED, MANAGED_SELECTOR, Kind
from finetune_operator.plan import containers
from finetune_operator.plan.conditions import sentence
from finetune_operator.plan.lost_nodes import is_lost
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.container import OtherContainer
from finetune_operator.views.pod import EventView, PodView

QUIET_SECONDS = 15
"""Events are needed if pods are missing, or stay in ContainerCreating, for so long."""
OBJECTS_MAX = 5
"""The events of at most so many objects of an attempt are needed."""

BEGINNING = "The attempt's pods are starting."
"""One text for everything that is usual at the start, so that not every small step writes the status."""

_ADVICE: dict[Kind, str] = {
    "prepare": "Check spec.prepare, the placement in spec.resources and the claims that the job names, or free nodes.",
    "train": "Check spec.resources (GPUs, cpu, memory, nodeSelector, tolerations) and the claims, or free nodes.",
}
_IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_PER_TRY = re.compile(r'(pods "[^"]+-)[a-z0-9]{5}"')
"""The name of a rejected pod is new with each try of the Job controller. Nobody wants a status write for it."""
_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*": ErrImagePull: ')
"""The kubelet alternates between the error of a pull and the pause after it, which quotes the error. One text for both
keeps the status as it is."""
_QUOTA = "exceeded quota"
_MOUNT = ("FailedAttachVolume", "FailedMapVolume", "FailedMount")
_STEPS = ("SuccessfulAttachVolume", *_MOUNT, "Pulling", "Pulled")
"""Events about a pod between its node and its start, in the order of the steps that they report."""


@dataclass(frozen=True)
class Diagnosis:
    """What the pods of an attempt do."""

    running: bool
    reason: Reason
    message: str


def diagnose(child: ChildJobView, pods: Sequence[PodView], events: Sequence[EventView], nodes: int) -> Diagnosis:
    """The fact that best explains the state of an attempt of so many pods. `events` may be empty: they are needed only
    if the pods alone explain nothing."""
    lost = [pod for pod in pods if is_lost(pod)]
    if lost:
        return _not_running(
            Reason.NODE_LOST,
            f"{lost[0].title(nodes)}: node {lost[0].node} does not answer. If it stays silent, the operator gives up"
            " the pod (chart value lostNodeTimeout), and the next attempt resumes. Nothing to do.",
        )
    ended = [pod for pod in pods if pod.gone or pod.exit_code is not None]
    if ended:
        others = ", ".join(other.name for pod in pods for other in containers.lingering(pod))
        rest = f"other containers ({others})" if others else "other pods"
        text = f"{ended[0].title(nodes)} has ended. Waiting for the attempt's {rest} to end."
        return _not_running(Reason.ENDING, text)
    for pod in sorted(pods, key=lambda pod: pod.rank):
        diagnosis = _container(pod, nodes) or _before_trainer(pod, nodes)
        if diagnosis:
            return diagnosis
    unscheduled = [pod for pod in pods if pod.unschedulable is not None]
    if unscheduled:
        return _unscheduled(child, unscheduled, pods, nodes)
    if len(pods) < nodes:
        return _missing(pods, events, nodes)
    if all(pod.running for pod in pods):
        return Diagnosis(True, Reason.RUNNING, "All pods run.")
    return _creating(next(pod for pod in pods if not pod.running), events, nodes)


def stopped(child: ChildJobView, nodes: int) -> Diagnosis | None:
    """Why the child job gets no pods, or too few: somebody changed it. The operator creates it active and complete, and
    never changes it."""
    name, namespace = child.name, child.key[0]
    if child.deleting:
        return _not_running(Reason.ENDING, f"Somebody deleted Job {name}. The attempt ends when its pods have ended.")
    if child.suspended:
        return _not_running(
            Reason.JOB_SUSPENDED,
            f"Somebody suspended Job {name}, so it has no pods. If a queue manages it, admit it there; else set its"
            f' spec.suspend to false: kubectl patch job {name} -n {namespace} -p \'{{"spec":{{"suspend":false}}}}\'',
        )
    if child.parallelism is not None and child.parallelism < nodes:
        return _not_running(
            Reason.JOB_SUSPENDED,
            f"Somebody set spec.parallelism of Job {name} to {child.parallelism}, but the attempt needs {nodes}. Set it"
            f' back: kubectl patch job {name} -n {namespace} -p \'{{"spec":{{"parallelism":{nodes}}}}}\'',
        )
    return None


def unwatched(child: ChildJobView) -> str:
    """What somebody did to a child job that the watch does not show, and how to take it back."""
    return (
        f"Somebody removed the label {LABEL_MANAGED} of Job {child.name}, so the operator sees its changes late. Set it"
        f" again: kubectl label job {child.name} -n {child.key[0]} {MANAGED_SELECTOR}"
    )


def _not_running(reason: Reason, message: str) -> Diagnosis:
    return Diagnosis(False, reason, message)


def _container(pod: PodView, nodes: int) -> Diagnosis | None:
    why = sentence(f"{pod.title(nodes)}: {_waits_for(pod)}")
    if pod.waiting_reason in _IMAGE:
        return _not_running(
            Reason.IMAGE_PULL_FAILED,
            f"{why} Check spec.resources.image, imagePullSecrets and the registry.",
        )
    if pod.waiting_reason in _CONFIG:
        return _not_running(
            Reason.CONFIG_MISSING,
            f"{why} Create what is missing, or correct spec.resources.env and spec.secrets.",
        )
    return None


def _waits_for(container: PodView | OtherContainer) -> str:
    return _BACK_OFF.sub("", container.waiting_message) or container.waiting_reason


def _before_trainer(pod: PodView, nodes: int) -> Diagnosis | None:
    """Why the trainer's container waits for a container of others. What usually ends by itself is no reason."""
    other = containers.before_trainer(pod)
    if other is None:
        return None
    title, ask = f"{pod.title(nodes)}: {other.title}", f"{containers.NOT_OURS} Ask its owner (image {other.image})."
    waits = sentence(f"{title}: {_waits_for(other)}")
    if other.waiting_reason in _IMAGE:
        return _not_running(Reason.IMAGE_PULL_FAILED, f"{waits} {ask}")
    if other.waiting_reason in _CONFIG:
        return _not_running(Reason.CONFIG_MISSING, f"{waits} {ask}")
    if other.exit_code:
        text = f"{title} failed with exit code {other.exit_code} and is restarted. The trainer waits for it. {ask}"
        return _not_running(Reason.OTHER_CONTAINER_FAILED, text)
    if other.running:
        return _not_running(Reason.STARTING, f"{title} runs. The trainer waits for it. {containers.NOT_OURS}")
    return None


def _unscheduled(child: ChildJobView, unscheduled: Sequence[PodView], pods: Sequence[PodView], nodes: int) -> Diagnosis:
    first = min(unscheduled, key=lambda pod: pod.rank)
    why = " ".join(filter(None, [sentence(first.unschedulable or ""), containers.changed_requests(first, child)]))
    placed = [pod.rank for pod in pods if pod.unschedulable is None]
    if placed:
        return _not_running(
            Reason.PARTLY_SCHEDULED,
            f"{len(placed)} of {nodes} pods have a node and hold it; {_absent_ranks(placed, nodes)} no node: {why}"
            f" {_ADVICE[first.kind]}",
        )
    return _not_running(Reason.UNSCHEDULABLE, f"{first.title(nodes)}: {why} {_ADVICE[first.kind]}")


def _absent_ranks(present: Sequence[int], nodes: int) -> str:
    """The node ranks that are not present, as 'node ranks 1, 4-7 have'."""
    absent = sorted(set(range(nodes)) - set(present))
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(absent), key=lambda item: item[1] - item[0])]
    listed = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:20])
    return f"node rank {listed} has" if len(absent) == 1 else f"node ranks {listed}{', ...' * (len(runs) > 20)} have"


def _missing(pods: Sequence[PodView], events: Sequence[EventView], nodes: int) -> Diagnosis:
    rejection = _latest(events, {"FailedCreate"})
    if rejection:
        absent = _absent_ranks([pod.rank for pod in pods], nodes)
        why = _PER_TRY.sub(r'\1*"', rejection.message)
        some = f" ({len(pods)} of {nodes} exist; {absent} none)" if pods else ""
        added = " The amounts include what a LimitRange or a webhook adds to the pods." if _QUOTA in why else ""
        return _not_running(
            Reason.PODS_REJECTED,
            f"The cluster rejects the pods{some}: {sentence(why)}{added} Check the namespace's quota, its Pod"
            " Security level, admission policies and the service account.",
        )
    return _not_running(Reason.STARTING, BEGINNING)


def _creating(pod: PodView, events: Sequence[EventView], nodes: int) -> Diagnosis:
    """By the newest event: a pod that pulls its image has its volumes."""
    newest = _latest(events, set(_STEPS))
    if newest and newest.reason in _MOUNT:
        return _not_running(
            Reason.VOLUME_NOT_MOUNTED,
            f"{pod.title(nodes)}: {sentence(newest.message)} {_mount_advice(newest.message)}",
        )
    if newest and newest.reason == "Pulling":
        return _not_running(
            Reason.PULLING_IMAGE,
            f"{pod.title(nodes)} pulls its image on node {pod.node}. The first pull on a node takes minutes.",
        )
    return _not_running(Reason.STARTING, BEGINNING)


def _mount_advice(message: str) -> str:
    if f'"{CA_VOLUME}"' in message:
        return (
            "The installation has the pods trust this ConfigMap (trainer.caBundle): create it in the job's namespace."
        )
    return "Check the claims, Secrets and ConfigMaps that it mounts."


def _latest(events: Sequence[EventView], reasons: set[str]) -> EventView | None:
    matching = [event for event in events if event.reason in reasons]
    return max(matching, key=lambda event: (event.last, _place(event)), default=None)


def _place(event: EventView) -> int:
    """Times count seconds, so in the same second the event of the later step is newer."""
    return _STEPS.index(event.reason) if event.reason in _STEPS else -1


def unexplained(child: ChildJobView, pods: Sequence[PodView], nodes: int) -> frozenset[str]:
    """Uids of the objects of which only events may tell why the attempt does not run: of the child job if pods are
    missing, and of pods that have a node, but neither run nor say what they wait for. What keeps a pod from a node is
    in its conditions."""
    silent = [
        pod.uid
        for pod in sorted(pods, key=lambda pod: pod.rank)
        if pod.node and not pod.running and not pod.gone and pod.unschedulable is None and not _explained(pod, nodes)
    ]
    return frozenset([*([child.uid] if len(pods) < nodes else []), *silent][:OBJECTS_MAX])


def _explained(pod: PodView, nodes: int) -> bool:
    """Whether the pod itself says what it waits for."""
    return (_container(pod, nodes) or _before_trainer(pod, nodes)) is not None
