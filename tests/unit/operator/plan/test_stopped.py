"""A child job that somebody else suspended or scaled down: the status reports it, and its time does not count."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.views.child_job import ChildJobView, child_job_view
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    NOW,
    TWO_NODES,
    begun,
    child_job,
    condition,
    pod,
    running,
    step,
    wait,
    with_status,
)

STOPPED: dict[str, tuple[dict[str, Any], str, str]] = {
    "suspended": ({"suspended": True}, "suspended Job demo-0a1b2-1", '{"spec":{"suspend":false}}'),
    "scaled to 0": ({"parallelism": 0}, "spec.parallelism of Job demo-0a1b2-1 to 0", '{"spec":{"parallelism":1}}'),
}


def going(**spec: Any) -> JobView:
    view = begun(**spec)
    return with_status(view, step(view, Snapshot((child_job(),), (running(),))))


@pytest.mark.parametrize("case", STOPPED)
@pytest.mark.parametrize("view", [begun, going])
@pytest.mark.parametrize("pods", [(), (running(),), (pod(),)], ids=["no pod", "a running pod", "a waiting pod"])
def test_somebody_stopped_the_child_job(case: str, view: Any, pods: tuple[Any, ...]) -> None:
    changes, *words = STOPPED[case]
    planned = step(view(), Snapshot((child_job(**changes),), pods))
    assert (planned.status.phase, planned.status.reason) == ("Starting", "JobSuspended")
    assert condition(planned.status, "Running") == ("False", "JobSuspended")
    assert all(word in (planned.status.message or "") for word in ("Somebody", *words, "-n team"))


def test_some_of_several_pods_are_too_few() -> None:
    planned = step(begun(resources=TWO_NODES), Snapshot((child_job(parallelism=1),), (running(),)))
    assert planned.status.reason == "JobSuspended"


def test_a_suspended_child_job_is_not_polled_and_has_no_deadline() -> None:
    planned = step(begun(startDeadlineSeconds=60), Snapshot((child_job(suspended=True),)), after=600)
    assert planned.status.reason == "JobSuspended"
    assert wait(planned) is None


def test_the_deadline_counts_from_the_end_of_a_suspension() -> None:
    child = replace(child_job(), started=NOW + timedelta(seconds=600))
    view, snapshot = begun(startDeadlineSeconds=60), Snapshot((child,), (pod(unschedulable="0/3 nodes"),))
    assert step(view, snapshot, after=650).status.reason == "Unschedulable"
    assert (step(view, snapshot, after=661).status.attempts or [])[-1].cause == "StartDeadlineExceeded"


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ((), "Starting"),
        ((pod(unschedulable="0/3 nodes"),), "Unschedulable"),
        ((pod(waiting_reason="ImagePullBackOff"),), "ImagePullFailed"),
        ((running(),), "Running"),
    ],
    ids=str,
)
def test_an_attempt_that_has_run_and_has_no_running_pod_does_not_run(pods: tuple[Any, ...], reason: str) -> None:
    """For example after a suspension."""
    planned = step(going(), Snapshot((child_job(),), pods))
    assert planned.status.reason == reason
    value = "True" if reason == "Running" else "False"
    assert condition(planned.status, "Running") == (value, reason)


def raw(spec: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    meta = {
        "namespace": "team",
        "name": "demo-0a1b2-1",
        "uid": "u",
        "resourceVersion": "1",
        "creationTimestamp": "2026-01-31T12:00:00Z",
        "labels": {
            "finetune-operator.io/job": "demo",
            "finetune-operator.io/kind": "train",
            "finetune-operator.io/attempt": "1",
        },
    }
    return {"metadata": meta, "spec": spec, "status": status}


@pytest.mark.parametrize(
    ("spec", "status", "seen"),
    [
        ({"suspend": True, "parallelism": 2}, {}, (True, 2, None)),
        ({"suspend": False, "parallelism": 0}, {"startTime": "2026-01-31T12:00:00Z"}, (False, 0, NOW)),
        ({"suspend": False}, {"conditions": [{"type": "Suspended", "status": "True"}]}, (True, None, None)),
        ({"suspend": False}, {"conditions": [{"type": "Suspended", "status": "False"}]}, (False, None, None)),
        ({}, {}, (False, None, None)),
    ],
)
def test_a_view_knows_what_stops_a_job(spec: dict[str, Any], status: dict[str, Any], seen: tuple[Any, ...]) -> None:
    view = child_job_view(raw(spec, status))
    assert isinstance(view, ChildJobView)
    assert (view.suspended, view.parallelism, view.started) == seen
