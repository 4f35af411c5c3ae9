"""Pods that stay Terminating on a node that does not answer. Only the kubelet of that node could say that they ended.

After `Settings.lost_node_timeout` the operator gives such a pod up: its attempt ends, and nobody waits for the pod any
more. The operator never deletes it by force, so its processes may still run, and may come back with the node. The
trainer's fence keeps them from what later attempts read (docs/several-nodes.md).
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from finetune_operator.settings import Settings
from finetune_operator.views.pod import PodView
from finetune_operator.views.snapshot import Snapshot

KILLED_SECONDS = 10
"""A kubelet that answers has killed and reported a pod so soon after its grace period."""
_TAINTED = "DeletionByTaintManager"


def is_lost(pod: PodView) -> bool:
    """Whether Kubernetes evicts the pod because its node does not answer, and nobody has said that it ended."""
    tainted = pod.status_reason == "NodeLost" or (pod.disruption or "").startswith(_TAINTED)
    return tainted and not pod.gone


def gives_up_at(pod: PodView, settings: Settings) -> datetime | None:
    """When nobody waits for the pod any more. None: it is not lost. A kubelet that answers may use the whole grace
    period: an administrator can evict pods by a taint, too."""
    if not is_lost(pod) or pod.asked_to_end is None or pod.ends_by is None:
        return None
    timeout = timedelta(seconds=settings.lost_node_timeout)
    return max(pod.asked_to_end + timeout, pod.ends_by + timedelta(seconds=KILLED_SECONDS))


def without_given_up(snapshot: Snapshot, now: datetime, settings: Settings) -> Snapshot:
    """The snapshot as if the pods that are given up were gone, and with them the deleted child jobs that only wait for
    such pods. They are in `Snapshot.given_up`."""
    over = {pod.uid for pod in snapshot.pods if (ends := gives_up_at(pod, settings)) is not None and now >= ends}
    if not over:
        return snapshot
    left = tuple(pod for pod in snapshot.pods if pod.uid not in over)
    given_up = tuple(pod for pod in snapshot.pods if pod.uid in over)
    zombies = {(pod.kind, pod.attempt) for pod in given_up} - {(pod.kind, pod.attempt) for pod in left if not pod.gone}
    children = tuple(
        child for child in snapshot.child_jobs if not (child.deleting and (child.kind, child.attempt) in zombies)
    )
    return replace(snapshot, pods=left, given_up=given_up, child_jobs=children)


def look_again(snapshot: Snapshot, settings: Settings) -> tuple[datetime, ...]:
    """When the next pods are given up."""
    moments = [ends for pod in snapshot.pods if (ends := gives_up_at(pod, settings)) is not None]
    return (min(moments),) if moments else ()


def message(given_up: Sequence[PodView], nodes: int, settings: Settings) -> str:
    """Why an attempt of so many pods ends, as sentences."""
    pod = min(given_up, key=lambda pod: pod.rank)
    return (
        f"{pod.title(nodes)}: node {pod.node} does not answer, and the pod was given up after"
        f" {settings.lost_node_timeout:.0f} s. It may still run there. It cannot change what later attempts read."
    )
