"""The state machine of attempts, as a series of plans: each starts from the status that the previous plan left."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_operator.plan import Create, Delete
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    TWO_NODES,
    begun,
    child_job,
    ended,
    fail,
    job,
    observed,
    pod,
    prepared,
    running,
    step,
    with_status,
)


def test_an_attempt_is_written_to_the_status_before_its_child_job_is_created() -> None:
    first = step(prepared())
    assert first.step is None
    assert first.status.attempt == 1
    assert first.status.resolved is not None
    assert first.status.resolved.image == "registry.example/finetune-trainer:1"
    second = step(with_status(job(), first))
    assert isinstance(second.step, Create)
    assert [child["kind"] for child in second.step.manifests] == ["ServiceAccount", "RoleBinding", "Job"]
    assert second.step.manifests[-1]["metadata"]["name"] == "demo-0a1b2-1"


def test_plans_are_stable() -> None:
    """The same state at a later time changes nothing: an idle operator does not write."""
    view = begun()
    for snapshot in (
        Snapshot((child_job(),)),
        Snapshot((child_job(),), (pod(unschedulable="0/3 nodes are available"),)),
        Snapshot((child_job(),), (running(),)),
    ):
        first = step(view, snapshot)
        again = step(with_status(view, first), snapshot, after=60)
        assert again.status == first.status
        assert again.step is None


def test_the_next_attempt_waits_for_every_pod_of_the_last() -> None:
    view = begun()
    leaving = replace(running(), deleting=True)
    planned = step(view, Snapshot((child_job(failed_reason="x"),), (leaving,)))
    assert planned.status.attempts is not None
    assert planned.status.attempts[-1].state != "Ended"


def test_a_new_attempt_has_a_higher_number_than_every_child_job() -> None:
    view, _ = fail(begun(), 70)
    planned = step(view, Snapshot((child_job(1, failed_reason="x"), child_job(4, failed_reason="x"))), after=10)
    assert planned.status.attempt == 5


def test_a_wiped_status_finds_the_running_job_again() -> None:
    planned = step(job(), Snapshot((child_job(3),), (running(3),)))
    assert planned.status.attempt == 3
    assert planned.step is None


def test_a_child_job_deleted_while_starting_is_created_again_and_while_running_counts() -> None:
    view = begun(backoffLimit=0)
    assert isinstance(step(view, Snapshot()).step, Create)
    view = with_status(view, step(view, Snapshot((child_job(),), (running(),))))
    planned = step(view, Snapshot())
    assert (planned.status.phase, planned.status.reason) == ("Failed", "BackoffLimitExceeded")
    assert "Somebody deleted" in (planned.status.message or "")


def test_the_start_deadline_is_written_down_before_the_child_job_is_deleted() -> None:
    view = begun(startDeadlineSeconds=60, backoffLimit=0)
    stuck = Snapshot((child_job(),), (pod(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),))
    assert step(view, stuck, after=59).status.reason == "Unschedulable"
    condemned = step(view, stuck, after=61)
    assert condemned.step is None
    view = with_status(view, condemned)
    assert isinstance(step(view, stuck, after=61).step, Delete)
    planned = step(view, Snapshot(), after=70)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "StartDeadlineExceeded")
    assert "Insufficient nvidia.com/gpu" in (planned.status.message or "")


def test_refused_objects_are_reported_and_given_up_at_the_deadline() -> None:
    view = begun(startDeadlineSeconds=60, backoffLimit=0)
    refused = Snapshot(refusal="The cluster refuses an object of the attempt: 403: exceeded quota: count/jobs.batch")
    planned = step(view, refused, after=5)
    assert (planned.status.reason, planned.step) == ("PodsRejected", None)
    assert "count/jobs.batch" in (planned.status.message or "")
    assert isinstance(step(with_status(view, planned), Snapshot(), after=10).step, Create)
    view = with_status(view, step(view, refused, after=61))
    planned = step(view, Snapshot(), after=62)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "StartDeadlineExceeded")
    assert "count/jobs.batch" in (planned.status.message or "")


def test_a_disruption_is_noted_before_the_pod_is_gone() -> None:
    """The error of its peer is not the job's fault, whatever the child job remembers."""
    view = begun(resources=TWO_NODES, backoffLimit=0)
    view = with_status(view, step(view, Snapshot((child_job(),), (running(), running(rank=1)))))
    drained = replace(running(rank=1), disruption="EvictionByEvictionAPI: evicting")
    view = with_status(view, noted := step(view, Snapshot((child_job(),), (running(), drained))))
    assert noted.status.phase == "Running"
    assert (view.status["attempts"][-1]["state"], view.status["attempts"][-1]["cause"]) == ("Ending", "Disrupted")
    assert step(view, Snapshot((child_job(),), (running(),))).status.attempts == noted.status.attempts
    text = "Container trainer for pod team/p failed with exit code 70 matching FailJob rule at index 5"
    over = child_job(failed_reason="PodFailurePolicy", failed_message=text)
    planned = step(view, Snapshot((over,), (ended(70),)))
    assert planned.status.reason == "RetryBackoff"
    assert "Node rank 1 (pod demo-0a1b2-1-1-abcde): EvictionByEvictionAPI" in (planned.status.message or "")
    assert planned.status.attempts is not None
    assert planned.status.attempts[-1].failures == 0


def test_a_disruption_that_did_not_happen_is_forgotten() -> None:
    view = begun(resources=TWO_NODES)
    threatened = replace(running(rank=1), disruption="PreemptionByScheduler: preempting")
    view = with_status(view, step(view, Snapshot((child_job(),), (running(), threatened))))
    planned = step(view, Snapshot((child_job(),), (running(), running(rank=1))))
    assert planned.status.attempts is not None
    assert (planned.status.attempts[-1].state, planned.status.attempts[-1].cause) == ("Running", None)


@pytest.mark.parametrize("code", [0, 65])
def test_a_job_that_has_ended_still_observes_its_spec(code: int) -> None:
    """Tools wait until status.observedGeneration is metadata.generation, `kubectl wait` also that of the condition."""
    view, _ = fail(begun(), code)
    assert view.status["phase"] in ("Succeeded", "Failed")
    planned = step(replace(view, generation=7))
    assert planned.status.to_dict() == observed(view.status, 7)


def test_the_deadline_comes_before_another_try_to_create() -> None:
    planned = step(begun(startDeadlineSeconds=60), Snapshot(), after=36000)
    assert (planned.status.attempts or [])[-1].cause == "StartDeadlineExceeded"
    assert planned.step is None
