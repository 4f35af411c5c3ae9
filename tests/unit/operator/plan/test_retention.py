"""What is left of a job, and when it goes: child jobs, Services, never the FineTuneJob's own objects."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.status import ATTEMPTS_SHOWN
from finetune_operator.plan import Delete, DeleteService, Plan
from finetune_operator.views.job import JobView
from finetune_operator.views.service import ServiceView
from finetune_operator.views.snapshot import Read, Snapshot

from tests.unit.operator.make import (
    MOMENT,
    NOW,
    SETTINGS,
    TWO_NODES,
    begun,
    child_job,
    fail,
    job,
    needs,
    step,
    with_status,
)

DAY = 86_400
KEPT = SETTINGS.model_copy(update={"ttl_seconds_after_finished": DAY})
OVER = Snapshot((child_job(kind="prepare", complete=True), child_job(failed_reason="x")))


def ended(**spec: Any) -> JobView:
    """A job that has Failed at NOW."""
    view, planned = fail(begun(**spec), 65)
    assert planned.status.phase == "Failed"
    return view


def deleted(planned: Plan) -> str:
    assert isinstance(planned.step, Delete)
    return planned.step.child_job.name


def test_children_of_a_finished_job_go_when_their_time_is_over() -> None:
    view = ended(ttlSecondsAfterFinished=600)
    waiting = step(view, OVER, after=10)
    assert (waiting.step, waiting.deadlines) == (None, (NOW + timedelta(seconds=600),))
    order, first = needs(view, OVER, after=600)
    assert (order, deleted(first)) == ([Read.JOB], OVER.child_jobs[0].name)
    rest = Snapshot((replace(OVER.child_jobs[0], deleting=True), OVER.child_jobs[1]))
    assert deleted(step(view, rest, after=601)) == OVER.child_jobs[1].name
    assert step(view, Snapshot((replace(OVER.child_jobs[1], deleting=True),)), after=602).step is None
    gone = step(view, Snapshot(), after=603)
    assert gone.status.children_deleted_time == "2026-01-31T12:10:03Z"
    view = with_status(view, gone)
    again = step(view, Snapshot(), after=10 * DAY)
    assert (again.status.to_dict(), again.step, again.deadlines) == (view.status, None, ())


@pytest.mark.parametrize(
    ("spec", "setting", "expires"),
    [({}, DAY, DAY), ({"ttlSecondsAfterFinished": 5}, DAY, 5), ({"ttlSecondsAfterFinished": 0}, -1, 0), ({}, -1, None)],
)
def test_the_job_decides_before_the_installation(spec: dict[str, int], setting: int, expires: int | None) -> None:
    settings = SETTINGS.model_copy(update={"ttl_seconds_after_finished": setting})
    view = ended(**spec)
    if expires is None:
        assert step(view, OVER, after=1000 * DAY, settings=settings).step is None
        return
    if expires:
        assert step(view, OVER, after=expires - 1, settings=settings).step is None
    assert isinstance(step(view, OVER, after=expires, settings=settings).step, Delete)


def test_a_time_that_is_changed_after_the_end_counts_from_the_end() -> None:
    view = ended(ttlSecondsAfterFinished=DAY)
    sooner = replace(view, spec={**view.spec, "ttlSecondsAfterFinished": 10})
    assert isinstance(step(sooner, OVER, after=11).step, Delete)


def test_a_job_that_had_no_children_is_left_alone() -> None:
    view = job(resources={"gpusPerNode": 3})
    view = with_status(view, step(view))
    assert view.status["phase"] == "Failed"
    assert step(view, Snapshot(), after=100 * DAY, settings=KEPT).status.to_dict() == view.status


def test_services_go_after_the_pods_that_use_them() -> None:
    view = ended(ttlSecondsAfterFinished=0, resources=TWO_NODES)
    service = ServiceView(view.key, "demo-0a1b2-1", "uid-of-service", 7)
    assert isinstance(step(view, replace(OVER, services=(service,))).step, Delete)
    order, planned = needs(view, Snapshot(services=(service,)))
    assert (order, planned.step) == ([Read.JOB, Read.SERVICES], DeleteService(service))
    assert step(view, Snapshot()).status.children_deleted_time == "2026-01-31T12:00:00Z"


def test_the_job_of_one_node_reads_no_services() -> None:
    assert needs(ended(ttlSecondsAfterFinished=0), Snapshot())[0] == []


def test_a_job_that_lives_keeps_the_child_jobs_of_the_attempts_in_its_status() -> None:
    view = begun()
    last = ATTEMPTS_SHOWN + 2
    entries = [
        {"number": number, "job": f"demo-0a1b2-{number}", "state": "Ended", "startTime": MOMENT, "endTime": MOMENT}
        for number in range(3, last + 1)
    ]
    view = replace(view, status={**view.status, "attempts": entries, "attempt": last})
    children = tuple(child_job(number, failed_reason="x") for number in range(1, last + 1))
    for oldest in (1, 2):
        planned = step(view, Snapshot(children))
        assert deleted(planned) == child_job(oldest).name
        assert planned.status.attempt == last
        children = children[1:]
    assert step(view, Snapshot(children)).status.attempt == last + 1
