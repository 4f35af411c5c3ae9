"""A failure that holds a job up: how any status reports it, and how it is taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from finetune_api.status import Reason
from finetune_operator.plan import Plan
from finetune_operator.plan.failures import TOLD, tell
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    NOW,
    begun,
    child_job,
    ended,
    fail,
    job,
    pod,
    prepared,
    running,
    step,
    with_status,
)


def going() -> JobView:
    view = begun()
    return with_status(view, step(view, Snapshot((child_job(),), (running(),))))


def expired() -> JobView:
    view = begun(startDeadlineSeconds=60)
    return with_status(view, step(view, Snapshot((child_job(),), (pod(),)), after=61))


def preparing() -> JobView:
    return with_status(job(), step(job()))


def failed() -> JobView:
    return fail(begun(backoffLimit=0), 70)[0]


OVER = child_job(failed_reason="PodFailurePolicy")
SITUATIONS: dict[str, tuple[Callable[[], JobView], Snapshot, float]] = {
    "new": (job, Snapshot(), 0),
    "preparing": (preparing, Snapshot((child_job(kind="prepare"),), (pod(kind="prepare"),)), 0),
    "prepared": (prepared, Snapshot(), 0),
    "starting": (begun, Snapshot((child_job(),), (pod(unschedulable="0/3 nodes"),)), 0),
    "running": (going, Snapshot((child_job(),), (running(),)), 0),
    "ended, a pod is left": (going, Snapshot((OVER,), (replace(running(), deleting=True),)), 0),
    "ended": (going, Snapshot((OVER,), (ended(70),)), 0),
    "backoff": (lambda: fail(begun(), 70)[0], Snapshot((OVER,), (ended(70),)), 1),
    "next": (lambda: fail(begun(), 70)[0], Snapshot((OVER,), (ended(70),)), 60),
    "deadline": (expired, Snapshot((replace(child_job(), deleting=True),), (pod(),)), 70),
    "failed": (failed, Snapshot((OVER,)), 0),
}


def with_failure(view: JobView, reason: Reason = Reason.API_SERVER_ERROR, error: str = "500: it broke") -> JobView:
    return replace(view, status=tell(view.status, reason, error, view.generation, NOW))


def texts(status: Any) -> set[tuple[str | None, str | None]]:
    return {(status.reason, status.message), *((c.reason, c.message) for c in status.conditions or [])}


@pytest.mark.parametrize("reason", TOLD)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_failure_is_told_and_taken_back_in_every_situation(situation: str, reason: Reason) -> None:
    make, snapshot, after = SITUATIONS[situation]
    view = make()
    told = with_failure(view, reason)
    conditions = {(c["reason"], c["message"]) for c in told.status["conditions"]}
    [message] = [text for condition, text in conditions if condition == reason]
    assert "500: it broke. The operator tries again" in message
    if situation != "failed":
        assert (told.status["reason"], told.status["message"]) == (reason, message)
        assert told.status["phase"] == view.status.get("phase", "Pending")
    planned: Plan = step(told, snapshot, after=after)
    assert not any(found == reason for found, _ in texts(planned.status))


def test_a_told_failure_stays_while_the_step_that_failed_is_still_to_be_taken() -> None:
    told = with_failure(begun())
    planned = step(told, Snapshot())
    assert planned.step is not None
    assert planned.status.to_dict() == told.status


def test_the_end_of_a_job_stays_what_it_is() -> None:
    view = failed()
    told = with_failure(view)
    assert {**told.status, "conditions": 0} == {**view.status, "conditions": 0}
    assert step(told, Snapshot((OVER,))).status.to_dict() == view.status


def test_a_value_of_a_condition_stays() -> None:
    """Pods that run do not stop because the operator fails."""
    told = with_failure(going())
    [condition] = [c for c in told.status["conditions"] if c["type"] == "Running"]
    assert (condition["status"], condition["reason"]) == ("True", "APIServerError")


def test_a_status_that_cannot_be_parsed_can_still_tell() -> None:
    status = {"phase": "Unheard", "conditions": [{"type": "Strange", "status": "True"}], "attempts": "none"}
    told = tell(status, Reason.OPERATOR_ERROR, "ValidationError: 1 error\n  attempts", 3, NOW)
    assert told["conditions"][0] == {"type": "Strange", "status": "True"}
    assert "ValidationError: 1 error attempts" in told["message"]


def test_a_long_error_does_not_cut_the_advice() -> None:
    told = tell({}, Reason.API_SERVER_ERROR, "x" * 5000, 1, NOW)
    assert told["message"].endswith("the operator's rights.")
    assert len(told["message"]) <= 1024


@pytest.mark.parametrize("phase", ["Starting", "Running"])
def test_a_job_that_this_release_cannot_read_keeps_its_phase_when_a_failure_is_over(phase: str) -> None:
    """Its attempt may run."""
    view = begun() if phase == "Starting" else going()
    view = replace(view, status={**view.status, "resolved": {**view.status["resolved"], "job": "unreadable"}})
    planned: Plan = step(with_failure(view), Snapshot((child_job(),), (running(),)))
    assert not any(found == Reason.API_SERVER_ERROR for found, _ in texts(planned.status))
    assert (planned.status.phase, planned.status.reason) == (phase, "NotSupported")
    [condition] = [c for c in planned.status.conditions or [] if c.type == "Running"]
    assert (condition.status, condition.reason) == (str(phase == "Running"), "NotSupported")
    again = step(with_status(view, planned), Snapshot((child_job(),), (running(),)))
    assert again.status == planned.status
