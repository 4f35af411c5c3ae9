"""What the status says while Kueue keeps a child job suspended, and when the operator looks again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Read, Snapshot
from finetune_operator.views.workload import Condition, QueueView, WorkloadView, position_of, workload_view

from tests.unit.operator.make import (
    NOW,
    begun,
    child_job,
    condition,
    ended,
    needs,
    pod,
    running,
    step,
    wait,
    with_status,
)

PENDING = Condition(False, "Pending", "insufficient unused quota")
TAKEN = Condition(True, "Preempted", "Preempted to accommodate a workload")


def workload(**conditions: Condition) -> WorkloadView:
    return WorkloadView("job-demo", "team", True, {"QuotaReserved": PENDING, **conditions})


def waiting(**changes: Any) -> ChildJobView:
    return child_job(suspended=True, queue="team", **changes)


def on_kueue(found: WorkloadView | None = None, **changes: Any) -> Snapshot:
    return Snapshot((waiting(),), queue=QueueView(found, **changes))


def test_the_workload_is_read_only_while_the_child_job_is_suspended() -> None:
    view = begun(queue="team")
    assert needs(view, on_kueue(workload()))[0] == [Read.WORKLOAD]
    assert needs(view, Snapshot((child_job(queue="team"),), (running(),)))[0] == []


CASES: dict[str, tuple[QueueView, str, str]] = {
    "waits": (QueueView(workload()), "WaitingForQuota", "waits in queue team: insufficient unused quota."),
    "place": (QueueView(replace(workload(), position=3)), "WaitingForQuota", "queue team (place 3)"),
    "no queue": (
        QueueView(workload(QuotaReserved=Condition(False, "Inadmissible", "LocalQueue team doesn't exist"))),
        "QueueUnusable",
        "LocalQueue team doesn't exist.",
    ),
    "checks": (
        QueueView(
            replace(workload(QuotaReserved=Condition(True, "QuotaReserved", "")), checks=("nodes is Pending: soon",))
        ),
        "WaitingForAdmission",
        "nodes is Pending: soon.",
    ),
    "admitted": (
        QueueView(
            workload(QuotaReserved=Condition(True, "QuotaReserved", ""), Admitted=Condition(True, "Admitted", ""))
        ),
        "Admitted",
        "about to start",
    ),
    "deactivated": (QueueView(replace(workload(), active=False)), "Deactivated", "patch workload job-demo -n team"),
    "no kueue": (QueueView(unknown="no Kueue"), "NoWorkload", "has no Kueue"),
    "no right": (QueueView(unknown="no right"), "WaitingForQuota", "kueue.enabled"),
}


@pytest.mark.parametrize("case", CASES)
def test_why_it_waits(case: str) -> None:
    queue, reason, words = CASES[case]
    planned = step(begun(queue="team"), Snapshot((waiting(),), queue=queue))
    assert (planned.status.phase, planned.status.reason) == ("Queued", reason)
    assert words in (planned.status.message or "")
    assert (planned.status.attempts or [])[-1].state == "Queued"


def test_kueue_has_some_time_to_take_a_job_up() -> None:
    early, late = (step(begun(queue="team"), on_kueue(), after=seconds) for seconds in (1, 20))
    assert (early.status.reason, late.status.reason) == ("NoWorkload", "NoWorkload")
    assert "has not taken up" in (early.status.message or "")
    assert "integration batch/job" in (late.status.message or "")


def test_the_pauses_between_looks_double() -> None:
    """No event tells that a Workload has changed."""
    view = begun(queue="team")
    view = with_status(view, step(view, on_kueue(workload())))
    found = {after: wait(step(view, on_kueue(workload()), after=after), after=after) for after in (1, 60, 9999)}
    assert found == {1: 2.0, 60: 60.0, 9999: 300.0}


def going() -> JobView:
    view = begun(queue="team", activeDeadlineSeconds=1000)
    return with_status(view, step(view, Snapshot((child_job(queue="team"),), (running(),))))


def test_an_eviction_is_another_run_of_the_same_attempt() -> None:
    view = going()
    evicted = Snapshot((waiting(),), (running(),), queue=QueueView(workload(Evicted=TAKEN)))
    planned = step(view, evicted, after=100)
    assert (planned.status.phase, planned.status.reason) == ("Queued", "Evicted")
    assert "Preempted to accommodate a workload). They save and end." in (planned.status.message or "")
    [attempt] = planned.status.attempts or []
    assert (attempt.number, attempt.state, attempt.evictions, attempt.running_time) == (1, "Queued", 1, None)
    # The clock of activeDeadlineSeconds stands still in the queue.
    assert (planned.status.active_seconds, planned.status.active_since) == (100, None)
    view = with_status(view, planned)
    again = step(view, on_kueue(workload(Evicted=TAKEN)), after=200)
    assert "when queue team admits it" in (again.status.message or "")
    [attempt] = again.status.attempts or []
    assert attempt.evictions == 1
    view = with_status(view, again)
    child = child_job(queue="team", started=NOW + timedelta(seconds=300))
    planned = step(view, Snapshot((child,), (running(),)), after=310)
    assert (planned.status.phase, condition(planned.status, "QuotaReserved")) == ("Running", ("True", "Admitted"))


def test_an_eviction_that_the_operator_has_missed_is_told_by_the_start_of_the_child_job() -> None:
    child = child_job(queue="team", started=NOW + timedelta(seconds=500))
    planned = step(going(), Snapshot((child,), (pod(unschedulable="0/3 nodes"),)), after=510)
    [attempt] = planned.status.attempts or []
    assert (attempt.state, attempt.evictions, attempt.running_time) == ("Starting", 1, None)
    assert planned.status.reason == "Unschedulable"


def test_the_start_deadline_counts_from_each_admission() -> None:
    view = begun(queue="team", startDeadlineSeconds=60)
    view = with_status(view, step(view, on_kueue(workload()), after=500))
    snapshot = Snapshot(
        (child_job(queue="team", started=NOW + timedelta(seconds=600)),), (pod(unschedulable="0/3 nodes"),)
    )
    assert step(view, snapshot, after=650).status.reason == "Unschedulable"
    assert (step(view, snapshot, after=661).status.attempts or [])[-1].cause == "StartDeadlineExceeded"


def test_a_child_job_that_is_deleted_in_the_queue_is_not_made_again_as_the_same_attempt() -> None:
    view = begun(queue="team")
    view = with_status(view, step(view, on_kueue(workload()), after=10))
    planned = step(view, Snapshot(), after=20)
    assert (planned.status.attempts or [])[-1].reason == "JobDeleted"


@pytest.mark.parametrize(("code", "reason"), [(137, "Disrupted"), (0, ""), (65, "InvalidData")])
def test_a_child_job_that_ends_while_it_is_evicted_costs_no_failure(code: int, reason: str) -> None:
    """Only of Jobs that Kueue has put into a queue by itself: of others the Job controller ignores such an end."""
    over = {"complete": True} if code == 0 else {"failed_reason": "PodFailurePolicy"}
    child = child_job(suspended=True, queue="default", **over)
    planned = step(going(), Snapshot((child,), (ended(code),)))
    [attempt] = planned.status.attempts or []
    assert (attempt.state, attempt.failures) == ("Ended", 0)
    assert reason in str(attempt.reason)


def test_a_workload_as_kueue_writes_it() -> None:
    found = workload_view(
        {
            "metadata": {"namespace": "team", "name": "w", "uid": "u", "resourceVersion": "1"},
            "spec": {"queueName": "q", "active": False},
            "status": {
                "conditions": [{"type": "Evicted", "status": "True", "reason": "Deactivated", "message": "m"}],
                "admissionChecks": [{"name": "a", "state": "Ready"}, {"name": "b", "state": "Retry", "message": "c"}],
            },
        }
    )
    assert (found.name, found.queue, found.active, found.checks) == ("w", "q", False, ("b is Retry: c",))
    assert found.is_true("Evicted")
    assert position_of("w", {"items": [{"metadata": {"name": "w"}, "positionInLocalQueue": 4}]}) == 5
    assert position_of("x", {"items": []}) is None
