"""Attempts in state Ending: the cause is written first, and decides what follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.status import Attempt, Reason
from finetune_operator.plan import Delete, Plan
from finetune_operator.plan.ending import CAUSES, is_ended_by_operator, set_ending, verdict_of
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import MOMENT, child_job, ended, pod, prepared, running, step, with_status

STUCK = Snapshot((child_job(),), (pod(unschedulable="0/3 nodes"),))
DRAINED = Snapshot((child_job(),), (replace(running(), disruption="EvictionByEvictionAPI: evicting"),))


def begun(**spec: Any) -> JobView:
    view = prepared(startDeadlineSeconds=60, **spec)
    return with_status(view, step(view))


def entry(planned: Plan) -> Attempt:
    assert planned.status.attempts is not None
    return planned.status.attempts[-1]


def test_an_attempt_that_does_not_start_in_time_ends_with_that_cause() -> None:
    view = begun()
    ending = step(view, STUCK, after=61)
    attempt = entry(ending)
    assert (attempt.state, attempt.cause, attempt.reason) == ("Ending", "StartDeadlineExceeded", None)
    assert "Unschedulable" in (attempt.message or "")
    assert ending.step is None, "the cause is written before the child job is deleted"
    view = with_status(view, ending)
    assert step(view, STUCK, after=62).step == Delete(child_job())
    assert step(view, Snapshot((child_job(deleting=True),)), after=63).step is None
    waiting = step(view, Snapshot(pods=(pod(),)), after=64)
    assert (waiting.status.reason, entry(waiting).state) == ("Ending", "Ending")
    attempt = entry(step(view, Snapshot(), after=65))
    assert (attempt.state, attempt.cause, attempt.reason) == ("Ended", None, "StartDeadlineExceeded")


def test_a_disrupted_attempt_is_ended_by_the_cluster_and_not_by_the_operator() -> None:
    view = begun()
    planned = step(view, DRAINED)
    attempt = entry(planned)
    assert (attempt.state, attempt.cause, attempt.reason) == ("Ending", "Disrupted", None)
    assert attempt.running_time is not None
    assert (planned.status.phase, planned.step) == ("Running", None)
    view = with_status(view, planned)
    assert step(view, DRAINED, after=100).status == planned.status
    attempt = entry(step(view, Snapshot((child_job(failed_reason="x"),), (ended(70),)), after=101))
    assert (attempt.state, attempt.cause, attempt.reason, attempt.failures) == ("Ended", None, "Disrupted", 0)


@pytest.mark.parametrize(("before", "state"), [(pod(), "Starting"), (running(), "Running")])
def test_an_attempt_whose_pods_all_stay_continues(before: Any, state: str) -> None:
    view = begun()
    threatened = replace(before, disruption="PreemptionByScheduler: preempting")
    view = with_status(view, step(view, Snapshot((child_job(),), (threatened,))))
    assert view.status["attempts"][-1]["state"] == "Ending"
    attempt = entry(step(view, Snapshot((child_job(),), (before,))))
    assert (attempt.state, attempt.cause, attempt.message) == (state, None, None)


def test_the_start_deadline_also_ends_an_attempt_that_is_disrupted_before_it_runs() -> None:
    view = begun()
    disrupted = Snapshot((child_job(),), (pod(disruption="PreemptionByScheduler: preempting"),))
    view = with_status(view, step(view, disrupted))
    assert entry(step(view, disrupted, after=61)).cause == "StartDeadlineExceeded"


def test_a_child_job_that_somebody_deletes_during_a_disruption_counts() -> None:
    view = begun()
    view = with_status(view, step(view, DRAINED))
    attempt = entry(step(view, Snapshot()))
    assert (attempt.reason, attempt.failures) == ("JobDeleted", 1)


@pytest.mark.parametrize(
    ("reason", "state"), [("StartDeadlineExceeded", "Starting"), ("Disrupted", "Running"), ("Disrupted", "Starting")]
)
def test_an_end_that_an_earlier_release_wrote_as_a_reason_is_carried_out(reason: str, state: str) -> None:
    view = begun()
    times = {"runningTime": MOMENT} if state == "Running" else {}
    old = {**view.status["attempts"][-1], "state": state, "reason": reason, "message": "why", **times}
    view = replace(view, status={**view.status, "attempts": [old]})
    planned = step(view, Snapshot((child_job(),), (pod(),)))
    if reason == "StartDeadlineExceeded":
        assert planned.step == Delete(child_job())
        assert entry(step(view, Snapshot())).reason == reason
    else:
        finished = Snapshot((child_job(failed_reason="x"),), (ended(70),))
        assert (entry(step(view, finished)).reason, entry(step(view, finished)).failures) == ("Disrupted", 0)


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_says_what_follows(cause: str) -> None:
    attempt = Attempt(number=1, job="demo-0a1b2-1", state="Running", start_time=MOMENT)
    assert not is_ended_by_operator(attempt)
    attempt = set_ending(attempt, Reason(cause), "why")
    assert is_ended_by_operator(attempt) == CAUSES[cause].deletes_child_job
    verdict = verdict_of(attempt)
    assert (verdict.end, verdict.reason, verdict.message) == (CAUSES[cause].end, cause, "why")
