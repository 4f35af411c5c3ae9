"""Nodes whose hardware may be faulty, and which the next attempts avoid.

The end of an attempt points to a node if the node was lost, if the trainer reports an error of the hardware, or if a
rank there computed much slower than the others. That is a suspicion, not a proof. So a few nodes are avoided at most,
for some hours, and only while the pods find other nodes. Where they once found none, they would wait in vain again: on
a cluster of one node, after each end of a job whose ranks are uneven.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from finetune_api.status import Attempt, FineTuneJobStatus, Progress, Reason

from finetune_operator.plan.judgement import Verdict
from finetune_operator.views.metadata import parse_time
from finetune_operator.views.pod import PodView

NODES_MAX = 3
"""Nodes that an attempt avoids at most: those of the newest ends."""
AVOIDED_SECONDS = 6 * 3600
"""How long after the end of the attempt a node is avoided."""
PLACE_SECONDS = 120
"""How long an attempt that avoids nodes may lack a place."""


def suspect(attempt: Attempt, verdict: Verdict, pods: Sequence[PodView], progress: Progress | None) -> str | None:
    """The node that the end of an attempt points to. Its pods may be gone: what was known before still counts.
    `progress` is what the attempt itself reported last."""
    faulty = verdict.result.faulty_node if verdict.result else None
    return _node(pods, faulty) or attempt.suspect or straggling(pods, progress)


def straggling(pods: Sequence[PodView], progress: Progress | None) -> str | None:
    """The node of a rank that straggles."""
    slowest = progress.slowest_rank if progress else None
    return _node(pods, slowest.node_rank) if slowest and slowest.since_step is not None else None


def _node(pods: Sequence[PodView], rank: int | None) -> str | None:
    return next((pod.node for pod in pods if pod.rank == rank and pod.node), None)


def avoided(attempts: Sequence[Attempt], now: datetime) -> list[str]:
    """The nodes that an attempt avoids that begins now. `attempts`: those before it, oldest first."""
    nodes: list[str] = []
    for entry in _recent(attempts, now):
        if entry.reason == Reason.UNSCHEDULABLE:
            break  # there was no place without them
        if entry.suspect and entry.suspect not in nodes:
            nodes.append(entry.suspect)
    needed = {
        node for entry in _recent(attempts, now) if entry.reason == Reason.UNSCHEDULABLE for node in entry.avoids or []
    }
    return [node for node in nodes if node not in needed][:NODES_MAX]


def _recent(attempts: Sequence[Attempt], now: datetime) -> Iterator[Attempt]:
    """The attempts of the last hours, newest first, since somebody has looked at the nodes."""
    for entry in reversed(attempts):
        ended = parse_time(entry.end_time) if entry.end_time else now
        if entry.retry is not None or now >= ended + timedelta(seconds=AVOIDED_SECONDS):
            return
        yield entry


def gives_up_at(attempt: Attempt, began: datetime) -> datetime | None:
    """When an attempt whose pods lack a place no longer avoids nodes. ``began``: when its pods were to start. None: it
    avoids none."""
    return began + timedelta(seconds=PLACE_SECONDS) if attempt.avoids else None


def no_place(attempt: Attempt, why: str) -> str:
    """Why an attempt that avoids nodes ends, as sentences."""
    return (
        f"There was no place without {named(attempt.avoids or [])} for {PLACE_SECONDS} s: {why} The next attempt may"
        " use every node."
    )


def explanation(attempt: Attempt) -> str:
    """What an attempt avoids, and why, as a sentence; empty if it avoids nothing."""
    if not attempt.avoids:
        return ""
    return f"It avoids {named(attempt.avoids)} because of earlier ends (status.attempts[].suspect)."


def announced(status: FineTuneJobStatus, now: datetime) -> str:
    """What the next attempt avoids, as the end of a sentence about it; empty if it avoids nothing."""
    nodes = avoided(status.attempts or [], now)
    return f" and avoids {named(nodes)}, whose hardware may be faulty" if nodes else ""


def named(nodes: Sequence[str]) -> str:
    return f"node{'s' * (len(nodes) > 1)} {', '.join(nodes)}"
