"""Jobs that each hold a part of the nodes that both need: the oldest keeps its nodes, the others begin again later."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.plan import Delete, Plan
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import format_time
from finetune_operator.views.pod import PodView
from finetune_operator.views.snapshot import Read, Snapshot

from tests.unit.operator.make import (
    NOW,
    SETTINGS,
    TWO_NODES,
    begun,
    child_job,
    needs,
    other,
    pod,
    running,
    step,
    wait,
    with_status,
)

TIMEOUT = SETTINGS.partly_scheduled_timeout


def rival(age: float = 60, namespace: str = "team", **resources: Any) -> JobView:
    """Another job that holds some nodes and lacks others; it began so many seconds before NOW."""
    start = format_time(NOW - timedelta(seconds=age))
    status = {"phase": "Starting", "reason": "PartlyScheduled", "startTime": start}
    return replace(other("rival", status=status, resources={**TWO_NODES, **resources}), namespace=namespace)


def halves(scheduled: float = 0) -> tuple[PodView, PodView]:
    """Two pods, of which one has a node."""
    placed = replace(running(), scheduled=NOW + timedelta(seconds=scheduled))
    return placed, pod(rank=1, unschedulable="0/3 nodes are available.")


def held(*rivals: JobView, after: float = TIMEOUT, **spec: Any) -> Plan:
    view = begun(**{"resources": TWO_NODES, "backoffLimit": 0, **spec})
    return step(view, Snapshot((child_job(),), halves(), rivals=rivals), after=after)


def test_the_younger_gives_its_nodes_back_uncounted() -> None:
    view = begun(resources=TWO_NODES, backoffLimit=0)
    snapshot = Snapshot((child_job(),), halves(), rivals=(rival(),))
    view = with_status(view, step(view, snapshot, after=TIMEOUT))
    [entry] = view.status["attempts"]
    assert (entry["state"], entry["cause"]) == ("Ending", "PartlyScheduled")
    assert "Job rival, which is older" in view.status["message"]
    assert isinstance(step(view, snapshot, after=TIMEOUT).step, Delete)
    planned = step(view, Snapshot((), ()), after=TIMEOUT + 5)
    [entry] = (planned.status.attempts or [])[:1]
    assert (entry.state, entry.reason, entry.failures) == ("Ended", "PartlyScheduled", 0)
    pause = wait(planned, after=TIMEOUT + 5)
    assert pause is not None
    assert SETTINGS.retry_seconds <= pause <= 2 * SETTINGS.retry_seconds


def test_the_pause_doubles_and_differs_between_jobs() -> None:
    pauses = []
    for name in ("a", "b"):
        view, now = replace(begun(resources=TWO_NODES), name=name, uid=f"{name}{'0' * 7}"), 0.0
        for number in (1, 2):
            snapshot = Snapshot((child_job(number),), tuple(replace(p, attempt=number) for p in halves(now)))
            now += TIMEOUT
            view = with_status(view, step(view, replace(snapshot, rivals=(rival(),)), after=now))
            planned = step(view, Snapshot((), ()), after=now)
            view, pause = with_status(view, planned), wait(planned, after=now)
            assert pause is not None
            pauses.append(pause)
            now += pause
            view = with_status(view, step(view, Snapshot((), ()), after=now))
    assert pauses[1] > pauses[0]
    assert pauses[3] > pauses[2]


def test_the_oldest_keeps_its_nodes_and_looks_again() -> None:
    planned = held(rival(age=-60))
    assert (planned.status.reason, planned.step) == ("PartlyScheduled", None)
    assert (wait(planned, after=TIMEOUT) or 0) <= 15


@pytest.mark.parametrize(
    ("held_by", "spec"),
    [
        (rival(gpuResource="amd.com/gpu"), {}),
        (rival(nodeSelector={"pool": "a"}), {"resources": {**TWO_NODES, "nodeSelector": {"pool": "b"}}}),
    ],
)
def test_a_job_for_other_nodes_is_no_rival(held_by: JobView, spec: dict[str, Any]) -> None:
    assert held(held_by, **spec).status.reason == "PartlyScheduled"


def test_without_a_rival_it_waits_for_its_start_deadline_as_ever() -> None:
    """The cluster may be growing for it."""
    assert held().status.reason == "PartlyScheduled"


def test_a_job_of_another_namespace_is_not_named() -> None:
    message = held(rival(namespace="secret-team")).status.message or ""
    assert "A job of another namespace, which is older" in message
    assert "secret-team" not in message
    assert "rival" not in message


def test_the_other_jobs_are_looked_at_only_once_nodes_are_held_for_long() -> None:
    view = begun(resources=TWO_NODES)
    snapshot = Snapshot((child_job(),), halves(scheduled=TIMEOUT))
    assert Read.RIVALS not in needs(view, snapshot, after=TIMEOUT + 1)[0], "it has just got a node"
    assert Read.RIVALS in needs(view, snapshot, after=2 * TIMEOUT)[0]


@pytest.mark.parametrize("ages", [(1, 2), (2, 1), (5, 5)])
def test_of_two_jobs_exactly_one_keeps_its_nodes(ages: tuple[int, int]) -> None:
    """Each decides by itself, from what the watches show of the other."""
    starts = [format_time(NOW - timedelta(minutes=age)) for age in ages]
    jobs = [replace(begun(resources=TWO_NODES), name=name, uid=f"{name}-uid") for name in ("left", "right")]
    jobs = [
        replace(job, status={**job.status, "startTime": start, "phase": "Starting", "reason": "PartlyScheduled"})
        for job, start in zip(jobs, starts, strict=True)
    ]
    kept = [
        step(job, Snapshot((child_job(),), halves(), rivals=tuple(jobs)), after=TIMEOUT).status.reason for job in jobs
    ]
    assert sorted(map(str, kept)) == ["Ending", "PartlyScheduled"]
