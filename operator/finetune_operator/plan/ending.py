"""Attempts in state Ending: why they end, who ends them, and what follows.

The operator writes the cause to the status before it deletes the child job, so that it understands the absence of the
child job afterwards. It also writes down a disruption at once: the pod may be gone before the attempt has ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.exit_codes import EndClass
from finetune_api.status import Attempt, Reason

from finetune_operator.plan.conditions import MESSAGE_MAX
from finetune_operator.plan.judgement import Verdict, own_limit
from finetune_operator.plan.lost_nodes import is_lost
from finetune_operator.views.pod import PodView


@dataclass(frozen=True)
class Cause:
    """How an attempt with this cause ends."""

    end: EndClass
    """What follows from the end of the attempt."""
    deletes_child_job: bool
    """Whether the operator ends the attempt by deleting its child job. Otherwise the cluster ends it, and the cause is
    evidence beside what pods and child job report."""


CAUSES: dict[str, Cause] = {
    Reason.START_DEADLINE_EXCEEDED: Cause(EndClass.RETRY, deletes_child_job=True),
    Reason.DEADLINE_EXCEEDED: Cause(EndClass.FATAL, deletes_child_job=True),
    Reason.SUSPENDED_BY_USER: Cause(EndClass.DISRUPTION, deletes_child_job=True),
    Reason.STOPPED_BY_USER: Cause(EndClass.DISRUPTION, deletes_child_job=True),
    Reason.NODE_LOST: Cause(EndClass.DISRUPTION, deletes_child_job=True),
    Reason.PARTLY_SCHEDULED: Cause(EndClass.DISRUPTION, deletes_child_job=True),
    Reason.UNSCHEDULABLE: Cause(EndClass.DISRUPTION, deletes_child_job=True),
    Reason.DISRUPTED: Cause(EndClass.DISRUPTION, deletes_child_job=False),
    Reason.NO_SPACE: Cause(EndClass.RETRY, deletes_child_job=False),
}
_DISRUPTIONS = (Reason.DISRUPTED, Reason.NO_SPACE)
"""Causes that a pod's condition DisruptionTarget reports."""
_BY_ITSELF = (EndClass.DONE, EndClass.USER_ERROR)
"""Ends that an attempt came to by itself, although the user had asked for its end meanwhile. Other ends may only follow
from the signal to stop, and another attempt shows whether they do."""


def set_ending(attempt: Attempt, cause: Reason, message: str) -> Attempt:
    """The entry of an attempt that is being ended. The message says why."""
    return attempt.model_copy(update={"state": "Ending", "cause": cause, "message": message[:MESSAGE_MAX]})


def _continue(attempt: Attempt) -> Attempt:
    """The entry of an attempt that is not ended after all."""
    state = "Starting" if attempt.running_time is None else "Running"
    return attempt.model_copy(update={"state": state, "cause": None, "message": None, "suspect": None})


def is_ended_by_operator(attempt: Attempt) -> bool:
    return attempt.state == "Ending" and attempt.cause in CAUSES and CAUSES[attempt.cause].deletes_child_job


def is_ended_for_user(attempt: Attempt) -> bool:
    """Whether the user asked for the end. Then also an error of the user counts that came before it."""
    return attempt.state == "Ending" and attempt.cause in (Reason.SUSPENDED_BY_USER, Reason.STOPPED_BY_USER)


def have_ended(pods: Sequence[PodView]) -> bool:
    """Whether the trainers of all pods have ended, and their exit codes are known."""
    return bool(pods) and all(pod.exit_code is not None for pod in pods)


def verdict_of(attempt: Attempt, evidence: Verdict | None = None) -> Verdict:
    """The verdict on an attempt that the operator has ended. The trainer may have been done before it was asked to
    end. `evidence`: how it ended, if that is known."""
    assert attempt.cause is not None, "set with state Ending"
    ends = _BY_ITSELF if is_ended_for_user(attempt) else (EndClass.DONE,)
    if evidence is not None and evidence.end in ends:
        return evidence
    return Verdict(CAUSES[attempt.cause].end, Reason(attempt.cause), attempt.message or "The operator ended it.")


def disruption(attempt: Attempt) -> str:
    """What is known about a disruption that ends the attempt; otherwise empty."""
    return (attempt.message or "") if attempt.cause in _DISRUPTIONS else ""


def note_disruption(attempt: Attempt, pods: Sequence[PodView], nodes: int) -> Attempt:
    """The entry, Ending if a pod is disrupted, and no longer Ending if all pods stay after all. A disrupted pod may be
    gone before the attempt has ended, and then only its peers' errors are left."""
    disrupted = next((pod for pod in pods if pod.disruption is not None), None)
    if disrupted is not None and attempt.state != "Ending":
        cause = Reason.NO_SPACE if own_limit(disrupted.disruption or "") else Reason.DISRUPTED
        suspect = disrupted.node if is_lost(disrupted) else attempt.suspect
        attempt = attempt.model_copy(update={"suspect": suspect})
        return set_ending(attempt, cause, f"{disrupted.title(nodes)}: {disrupted.disruption}")
    stayed = disrupted is None and len(pods) >= nodes
    return _continue(attempt) if stayed and attempt.cause in _DISRUPTIONS else attempt
