"""activeDeadlineSeconds: which time counts, what ends at the limit, and what the user reads."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.plan import Delete
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    NOW,
    begun,
    child_job,
    condition,
    ended,
    fail,
    job,
    result,
    retried,
    running,
    saved,
    step,
    wait,
    with_status,
)

RUNS = Snapshot((child_job(),), (running(),))


def written(view: JobView, snapshot: Snapshot, *, after: float) -> JobView:
    return with_status(view, step(view, snapshot, after=after))


def second_attempt(limit: int | None, *, failed: float, again: float) -> JobView:
    """The first attempt runs from NOW until it fails, the second from `again` on."""
    view, _ = fail(written(begun(activeDeadlineSeconds=limit), RUNS, after=0), 70, after=failed)
    left = Snapshot((child_job(failed_reason="x"),))
    view = retried(view, left, after=again - 1)
    return written(view, both(), after=again)


def both() -> Snapshot:
    return Snapshot((child_job(failed_reason="x"), child_job(2)), (running(2),))


def edited(view: JobView, **spec: Any) -> JobView:
    return replace(view, spec={**view.spec, **spec})


def expire(view: JobView, snapshot: Snapshot, *, after: float) -> JobView:
    """The attempt after the limit: asked to end, deleted, gone."""
    view = written(view, snapshot, after=after)
    assert view.status["attempts"][-1]["cause"] == "DeadlineExceeded"
    assert isinstance(step(view, snapshot, after=after).step, Delete)
    return view


def test_a_job_that_has_trained_long_enough_saves_and_fails_with_what_to_do() -> None:
    view = written(begun(activeDeadlineSeconds=100), RUNS, after=0)
    assert step(view, RUNS, after=99).status.phase == "Running"
    view = saved(expire(view, RUNS, after=100), 40)
    assert "saves" in view.status["message"]
    planned = step(view, Snapshot(), after=130)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "DeadlineExceeded")
    message = planned.status.message or ""
    assert "trained for 130 s in 1 attempt; spec.activeDeadlineSeconds is 100." in message
    assert "newest checkpoint that was reported is of step 40" in message
    assert '{"spec":{"activeDeadlineSeconds":260,"retry":1}}' in message
    assert (planned.status.active_seconds, planned.status.active_since) == (130, None)


def test_time_between_attempts_and_before_they_run_does_not_count() -> None:
    view = second_attempt(100, failed=60, again=1000)
    assert view.status["activeSeconds"] == 60
    assert step(view, both(), after=1039).status.phase == "Running"
    expire(view, both(), after=1040)


def test_a_job_that_runs_has_one_timer_for_its_deadline() -> None:
    view = written(begun(activeDeadlineSeconds=100), RUNS, after=0)
    due = NOW + timedelta(seconds=100)
    assert step(view, RUNS, after=10).deadlines.count(due) == 1
    assert wait(step(view, RUNS, after=10), after=10) == 90
    unlimited = step(edited(view, activeDeadlineSeconds=None), RUNS, after=10)
    assert due not in unlimited.deadlines


def test_a_limit_that_is_raised_in_time_holds_and_a_lower_limit_ends_the_attempt_at_once() -> None:
    view = written(begun(activeDeadlineSeconds=100), RUNS, after=0)
    raised = edited(view, activeDeadlineSeconds=500)
    assert step(raised, RUNS, after=400).status.phase == "Running"
    expire(edited(view, activeDeadlineSeconds=10), RUNS, after=50)


@pytest.mark.parametrize("limit", [60, 10])
def test_no_attempt_begins_when_the_time_is_over(limit: int) -> None:
    view, _ = fail(written(begun(activeDeadlineSeconds=1000), RUNS, after=0), 70, after=60)
    planned = step(edited(view, activeDeadlineSeconds=limit), Snapshot((child_job(failed_reason="x"),)), after=61)
    assert (planned.status.phase, planned.status.reason, planned.status.attempt) == ("Failed", "DeadlineExceeded", 1)


def test_preparing_does_not_count() -> None:
    view = with_status(job(activeDeadlineSeconds=10), step(job(activeDeadlineSeconds=10)))
    prepares = Snapshot((child_job(kind="prepare"),), (running(kind="prepare"),))
    view = written(view, prepares, after=0)
    planned = step(view, prepares, after=5000)
    assert (planned.status.phase, planned.status.active_seconds) == ("Preparing", None)


def test_time_in_which_somebody_suspends_the_child_job_does_not_count() -> None:
    view = written(begun(activeDeadlineSeconds=100), RUNS, after=0)
    suspended = Snapshot((child_job(suspended=True),))
    view = written(view, suspended, after=30)
    assert (view.status["activeSeconds"], view.status.get("activeSince")) == (30, None)
    assert wait(step(view, suspended, after=40), after=40) is None
    resumed = Snapshot((child_job(started=NOW + timedelta(seconds=5000)),), (running(),))
    view = written(view, resumed, after=5010)
    assert step(view, resumed, after=5079).status.phase == "Running"
    expire(view, resumed, after=5080)


def test_an_end_that_is_seen_late_counts_when_it_happened() -> None:
    """The operator was away; the child job remembers its end."""
    view = written(begun(activeDeadlineSeconds=100), RUNS, after=0)
    end = NOW + timedelta(seconds=20)
    seen = Snapshot((child_job(failed_reason="PodFailurePolicy", ended=end),), (ended(70),))
    planned = step(view, seen, after=9000)
    assert (planned.status.reason, planned.status.active_seconds) == ("RetryBackoff", 20)


@pytest.mark.parametrize("how", ["complete", "reported"])
def test_an_attempt_that_was_done_before_it_was_asked_to_end_is_done(how: str) -> None:
    view = expire(written(begun(activeDeadlineSeconds=100), RUNS, after=0), RUNS, after=100)
    snapshot = Snapshot((child_job(complete=True),), (ended(0),))
    if how == "reported":
        snapshot, view = Snapshot(), replace(view, status={**view.status, "result": result(0).to_dict()})
    assert step(view, snapshot, after=101).status.phase == "Succeeded"


def test_a_status_of_a_release_that_did_not_count_is_completed_from_its_attempts() -> None:
    view = second_attempt(None, failed=60, again=1000)
    old = {name: value for name, value in view.status.items() if name not in ("activeSeconds", "activeSince")}
    planned = step(replace(view, status=old), both(), after=1010)
    assert (planned.status.active_seconds, planned.status.active_since) == (60, view.status["activeSince"])


def test_a_job_over_its_deadline_says_so_in_its_condition() -> None:
    view = expire(written(begun(activeDeadlineSeconds=100), RUNS, after=0), RUNS, after=100)
    assert condition(step(view, Snapshot(), after=101).status, "Failed") == ("True", "DeadlineExceeded")


def test_time_in_which_the_user_suspends_the_job_does_not_count() -> None:
    view = edited(written(begun(activeDeadlineSeconds=100), RUNS, after=0), suspend=True)
    view = written(view, RUNS, after=30)
    view = written(view, Snapshot(), after=40)
    view = written(view, Snapshot(), after=41)
    assert (view.status["phase"], view.status["activeSeconds"], view.status.get("activeSince")) == (
        "Suspended",
        40,
        None,
    )
    view = written(edited(view, suspend=False), Snapshot(), after=5000)
    runs = Snapshot((child_job(2),), (running(2),))
    view = written(view, runs, after=5001)
    assert step(view, runs, after=5060).status.phase == "Running"
    expire(view, runs, after=5061)
