"""Restarts of the trainer in the same pods: what the status tells of them, and what they count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.status import Attempt, Result
from finetune_operator import events
from finetune_operator.plan import Plan
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot
from finetune_operator.views.status import parse_status

from tests.unit.operator.make import (
    NOW,
    begun,
    child_job,
    condition,
    ended,
    fail,
    reporting,
    result,
    retried,
    running,
    saved,
    step,
    with_status,
)


def restart(number: int = 1, failures: int = 1, reason: str = "Hung", **fields: Any) -> dict[str, Any]:
    """What the trainer reports of its newest restart."""
    plain = {"exitCode": 76, "message": "Rank 1 hangs", "time": "2026-01-31T12:00:00Z"}
    return {"number": number, "failures": failures, "reason": reason, **plain, **fields}


def pods(attempt: int = 1) -> Snapshot:
    return Snapshot((child_job(attempt),), (running(attempt),))


def restarting(view: JobView, newest: dict[str, Any], attempt: int = 1, **progress: Any) -> tuple[JobView, Plan]:
    """The job once the trainer has reported a restart, and what the operator makes of it."""
    fields = {"activity": "Loading", "step": 0, "restart": newest, **progress}
    view = reporting(view, attempt, **fields)
    planned = step(view, pods(attempt))
    return with_status(view, planned), planned


def newest(planned: Plan) -> Attempt:
    assert planned.status.attempts
    return planned.status.attempts[-1]


def test_a_restart_is_told_until_the_ranks_train_again() -> None:
    view, planned = restarting(begun(), restart())
    status = planned.status
    assert (status.phase, status.reason) == ("Running", "Restarting")
    assert condition(status, "Running") == ("True", "Restarting")
    assert status.message == "Restarting in place after Hung (restart 1 of attempt 1): Rank 1 hangs."
    entry = newest(planned)
    assert entry.restarts is not None
    assert (entry.restarts.to_dict(), entry.state, entry.failures) == (restart(), "Running", 0)
    view, planned = restarting(view, restart(), activity="Training", startStep=40, step=41)
    assert (planned.status.reason, planned.status.message) == (
        "Running",
        "Training: attempt 1, restarted in place once (last after Hung), resumes from checkpoint step 40.",
    )


def test_a_restart_stays_known_when_its_report_is_gone() -> None:
    """Somebody removed the trainer's reports, or an earlier one arrived late."""
    view, _ = restarting(begun(), restart(2, 2))
    without = replace(view, status={name: value for name, value in view.status.items() if name != "progress"})
    for later in (without, reporting(view, restart=restart(1, 1))):
        entry = newest(step(later, pods()))
        assert entry.restarts is not None
        assert entry.restarts.number == 2


def test_a_restart_of_another_attempt_is_none_of_this() -> None:
    view, _ = fail(begun(), 70)
    view = retried(view, Snapshot((child_job(failed_reason="x"),)), after=10)
    _, planned = restarting(view, restart(), attempt=1)
    assert newest(planned).restarts is None


@pytest.mark.parametrize(("limit", "phase"), [(2, "Failed"), (3, "Starting")])
def test_restarts_count_against_the_limit_with_the_end_that_follows_them(limit: int, phase: str) -> None:
    view, _ = restarting(begun(backoffLimit=limit), restart(2, 2))
    view, planned = fail(view, 70)
    assert (planned.status.phase, newest(planned).failures) == (phase, 3)
    if phase == "Failed":
        assert planned.status.reason == "BackoffLimitExceeded"
        assert "3 failures, those before restarts in the same pods included; spec.backoffLimit is 2." in (
            planned.status.message or ""
        )
        return
    assert "Attempt 1 ended after 2 restarts in its pods: InternalError" in (planned.status.message or "")
    view = retried(view, Snapshot((child_job(failed_reason="x"),)), after=1000)
    view, planned = fail(view, 70, after=1000)
    assert (planned.status.phase, newest(planned).failures) == ("Failed", 4)


@pytest.mark.parametrize("where", ["progress", "result", "termination message"])
def test_the_end_of_an_attempt_counts_the_restarts_that_are_reported_with_it(where: str) -> None:
    """The last restart may be in none but the last report: status writes are best effort."""
    view, told = begun(backoffLimit=5), result(70, restart=restart(3, 3))
    view = with_status(view, step(view, pods()))
    message = ""
    if where == "progress":
        view = reporting(view, restart=restart(3, 3))
    elif where == "result":
        view = replace(view, status={**view.status, "result": told.to_dict()})
    else:
        message = told.model_dump_json(by_alias=True)
    _, planned = fail(view, 70, terminated_message=message)
    assert newest(planned).failures == 4


def test_a_micro_batch_halved_in_place_is_that_of_the_attempt_and_of_the_next() -> None:
    view = begun(training={"epochs": 1, "globalBatchSize": 8, "microBatchSize": 8}, backoffLimit=0)
    view, planned = restarting(view, restart(1, 0, "GPUOutOfMemory", microBatchSize=4))
    assert newest(planned).micro_batch_size == 4
    assert "with a micro-batch of 4" in (planned.status.message or "")
    view, planned = fail(view, 71)
    assert "with a micro-batch of 2" in (planned.status.message or "")
    view = retried(view, Snapshot((child_job(failed_reason="x"),)), after=1000)
    entry = parse_status(view.status).attempts or []
    assert (entry[-1].micro_batch_size, entry[-1].failures) == (2, 0)


def test_a_counted_restart_does_not_make_the_end_for_gpu_memory_count() -> None:
    """Otherwise the next attempt would have the same micro-batch."""
    view = begun(training={"epochs": 1, "globalBatchSize": 8, "microBatchSize": 8})
    view, _ = restarting(view, restart())
    view, planned = fail(view, 71)
    assert newest(planned).failures == 1
    view = retried(view, Snapshot((child_job(failed_reason="x"),)), after=1000)
    assert (parse_status(view.status).attempts or [])[-1].micro_batch_size == 4


def test_a_job_that_is_opened_again_has_a_new_budget_for_restarts() -> None:
    view, _ = restarting(begun(backoffLimit=2), restart(2, 2))
    view, planned = fail(view, 70)
    assert planned.status.phase == "Failed"
    view = replace(view, spec={**view.spec, "retry": 1})
    view = with_status(view, step(view, Snapshot((child_job(failed_reason="x"),)), after=1000))
    view = with_status(view, step(view, Snapshot((child_job(failed_reason="x"),)), after=1000))
    entry = (parse_status(view.status).attempts or [])[-1]
    assert (entry.number, entry.failures, entry.restarts) == (2, 0, None)
    view, planned = restarting(view, restart(1, 1), attempt=2)
    view, planned = fail(view, 71, terminated_message=evaluating(2).model_dump_json(by_alias=True))
    assert (planned.status.phase, newest(planned).failures) == ("Starting", 2)
    view = retried(view, Snapshot((child_job(2, failed_reason="x"),)), after=9000)
    assert (parse_status(view.status).attempts or [])[-1].micro_batch_size is None, "it would not have helped"


def evaluating(attempt: int) -> Result:
    """A GPU ran out of memory in an evaluation."""
    return result(71, attempt, outOfMemory={"phase": "evaluate", "rank": 0, "microBatchSize": 1})


def test_a_disruption_after_a_restart_keeps_what_the_restart_counted() -> None:
    view, _ = restarting(begun(backoffLimit=1), restart())
    _, planned = fail(view, 75)
    assert (planned.status.phase, newest(planned).failures) == ("Starting", 1)


def test_an_attempt_that_saved_before_its_restart_has_made_progress() -> None:
    """The entry has the step that the restart resumed from, which is no older than what the attempt saved."""
    view, _ = restarting(saved(begun(), 40), restart(), activity="Training", startStep=40, step=41)
    _, planned = fail(view, 75)
    assert newest(planned).stalled == 0


def test_each_restart_is_an_event_and_the_same_restart_is_one() -> None:
    before = begun()
    first, planned = restarting(before, restart())
    second, again = restarting(first, restart(2, 2))
    told = [
        events.event(view, parse_status(view.status), after.status, NOW)
        for view, after in ((before, planned), (first, again), (second, again))
    ]
    assert [made and (made["type"], made["reason"]) for made in told] == [("Warning", "Restarting")] * 2 + [None]
    assert told[0] is not None
    assert told[1] is not None
    assert told[0]["metadata"]["name"] != told[1]["metadata"]["name"]


def test_a_success_after_restarts_keeps_them_in_the_entry() -> None:
    text = Result.model_validate(result(0, restart=restart()).to_dict()).model_dump_json(by_alias=True)
    done = Snapshot((child_job(complete=True),), (ended(0, terminated_message=text),))
    planned = step(begun(), done)
    assert planned.status.phase == "Succeeded"
    entry = newest(planned).restarts
    assert entry is not None
    assert entry.number == 1
