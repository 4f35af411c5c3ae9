"""spec.stop: the artifact is made of what was trained, in every phase, or the job says that nothing can be kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.plan import Create, Delete, Plan
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    SETTINGS,
    TWO_NODES,
    artifact,
    begun,
    child_job,
    condition,
    ended,
    fail,
    job,
    observed,
    prepared,
    result,
    running,
    saved,
    step,
    with_status,
)
from tests.unit.operator.plan.test_suspension import UNDER_WAY, at_rest, set_suspend, trains

NOTHING = ("Failed", "NothingToKeep")


def stopped(view: JobView, **spec: Any) -> JobView:
    """The job after the user has stopped it."""
    return replace(view, spec={**view.spec, "stop": "keep", **spec}, generation=view.generation + 1)


def keeping(view: JobView, *, after: float = 0) -> tuple[JobView, Plan]:
    """The job once an attempt keeps its newest checkpoint, and the plan that creates its child job."""
    begins = step(view, after=after)
    attempt = (begins.status.attempts or [])[-1]
    assert (attempt.keeps, attempt.state, attempt.number) == (True, "Starting", len(begins.status.attempts or []))
    view = with_status(view, begins)
    return view, step(view, after=after)


def pod_of(planned: Plan) -> dict[str, Any]:
    assert isinstance(planned.step, Create)
    child = planned.step.manifests[-1]
    template: dict[str, Any] = child["spec"]["template"]["spec"]
    return {"count": child["spec"]["completions"], **template}


@pytest.mark.parametrize(
    ("view", "snapshot"),
    [
        (job(), Snapshot()),
        (job(suspend=True), Snapshot()),
        (job(model={"fromJob": "first"}), Snapshot()),
        (with_status(job(), step(job())), Snapshot((child_job(kind="prepare"),), (running(kind="prepare"),))),
        (prepared(), Snapshot()),
    ],
    ids=["new", "suspended", "waiting for a job", "preparing", "prepared"],
)
def test_nothing_is_kept_of_a_job_that_has_not_trained(view: JobView, snapshot: Snapshot) -> None:
    planned = step(stopped(view), snapshot)
    assert (planned.status.phase, planned.status.reason) == NOTHING
    assert condition(planned.status, "Failed") == ("True", "NothingToKeep")
    assert all(attempt.state == "Ended" for attempt in planned.status.prepare_attempts or [])
    for child in snapshot.child_jobs:
        assert step(with_status(stopped(view), planned), snapshot).step == Delete(child)


def test_an_attempt_that_never_ran_is_ended_and_nothing_is_kept() -> None:
    view = stopped(begun())
    ends = step(view, snapshot := Snapshot((child_job(),)))
    assert (ends.step, ends.status.reason) == (None, "Ending")
    view = with_status(view, ends)
    assert isinstance(step(view, snapshot).step, Delete)
    view = with_status(view, step(view))
    assert view.status["attempts"][0]["reason"] == "StoppedByUser"
    planned = step(view)
    assert (planned.status.phase, planned.status.reason) == NOTHING


def test_a_trainer_that_runs_makes_the_artifact() -> None:
    view = stopped(trains())
    told = step(view, UNDER_WAY)
    assert (told.status.phase, told.status.reason, told.step) == ("Running", "StoppedByUser", None)
    assert "next report" in (told.status.message or "")
    assert step(with_status(view, told), UNDER_WAY, after=60).status == told.status
    message = "Training was stopped by the user (spec.stop) at step 40 of 100"
    end = result(0, reason="StoppedByUser", message=message, artifact=artifact("demo"))
    done = Snapshot((child_job(complete=True),), (ended(0, terminated_message=end.model_dump_json(by_alias=True)),))
    planned = step(with_status(view, told), done)
    assert (planned.status.phase, planned.status.reason) == ("Succeeded", "StoppedByUser")
    assert condition(planned.status, "Succeeded") == ("True", "StoppedByUser")
    assert end.artifact is not None
    assert planned.status.message == f"{message}; the adapter is at {end.artifact.uri}."


@pytest.mark.parametrize("how", ["suspended", "in back-off", "disrupted", "out of attempts"])
def test_without_a_pod_another_attempt_keeps_the_newest_checkpoint(how: str) -> None:
    view = saved(trains(), 40)
    if how == "suspended":
        view = stopped(at_rest(view))
    elif how == "in back-off":
        view = stopped(fail(view, 70)[0])
    elif how == "disrupted":
        view = fail(stopped(view), 75)[0]
    else:
        view = fail(stopped(view, backoffLimit=0), 70)[0]
    view, created = keeping(view)
    pod = pod_of(created)
    [container] = pod["containers"]
    assert (pod["count"], container["args"][:2]) == (1, ["train", "--keep"])
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert container["resources"]["limits"]["memory"] == "16Gi"
    snapshot = Snapshot((child_job(2),), (running(2),))
    told = step(view, snapshot)
    assert (told.status.phase, told.status.reason) == ("Running", "StoppedByUser")
    assert "last reported: step 40" in (told.status.message or "")
    end = result(0, 2, reason="StoppedByUser", message="m", artifact=artifact("demo"))
    over = ended(0, 2, terminated_message=end.model_dump_json(by_alias=True))
    planned = step(with_status(view, told), Snapshot((child_job(2, complete=True),), (over,)))
    assert (planned.status.phase, planned.status.reason) == ("Succeeded", "StoppedByUser")


def test_a_single_pod_keeps_what_several_nodes_trained_unless_the_weights_are_sharded() -> None:
    for parallelism, count in (("ddp", 1), ("fsdp", 2)):
        view = begun(resources=TWO_NODES, training={"epochs": 1, "parallelism": parallelism})
        view = with_status(view, step(view, Snapshot((child_job(),), (running(), running(rank=1)))))
        view = stopped(fail(saved(view, 7), 75)[0])
        _, created = keeping(view)
        pod = pod_of(created)
        assert pod["count"] == count
        [container] = pod["containers"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (count == 2)
        assert ("subdomain" in pod) == (count == 2)


def test_keeping_is_tried_again_like_any_attempt() -> None:
    view, _ = keeping(stopped(fail(saved(trains(), 40), 75)[0]))
    view, planned = fail(view, 70)
    assert planned.status.reason == "RetryBackoff"
    assert step(view).status == planned.status, "after the usual pause"
    view = with_status(view, step(view, after=60))
    assert [attempt.get("keeps") for attempt in view.status["attempts"]] == [None, True, True]


def test_a_trainer_that_finds_no_checkpoint_says_so() -> None:
    view, _ = keeping(stopped(fail(trains(), 75)[0]))
    end = result(66, 2, reason="NothingToKeep", message="no intact checkpoint")
    over = ended(66, 2, terminated_message=end.model_dump_json(by_alias=True))
    planned = step(view, Snapshot((child_job(2, failed_reason="PodFailurePolicy"),), (over,)))
    assert (planned.status.phase, planned.status.reason) == NOTHING
    assert planned.status.message == "no intact checkpoint"


@pytest.mark.parametrize("code", [65, 72])
def test_an_end_that_somebody_has_to_look_at_fails_the_job(code: int) -> None:
    _, planned = fail(stopped(saved(trains(), 40)), code)
    assert planned.status.phase == "Failed"


def test_keeping_takes_the_image_of_this_release() -> None:
    """An earlier trainer does not know how."""
    newer = SETTINGS.model_copy(update={"trainer_image": "registry.example/finetune-trainer:2"})
    view = stopped(fail(saved(trains(), 40), 75)[0])
    begins = step(view, settings=newer)
    assert begins.status.resolved is not None
    assert begins.status.resolved.image == newer.trainer_image
    assert begins.status.resolved.digest == view.status["resolved"]["digest"]


def test_a_trainer_that_does_not_learn_of_the_stop_is_ended_by_a_suspension() -> None:
    view = stopped(saved(trains(), 40), suspend=True)
    view = with_status(view, ends := step(view, UNDER_WAY))
    assert (ends.status.reason, ends.step) == ("Ending", None)
    assert isinstance(step(view, UNDER_WAY).step, Delete)
    keeping(with_status(view, step(view)))


def test_a_suspension_does_not_hold_up_an_attempt_that_keeps() -> None:
    view, _ = keeping(stopped(at_rest(saved(trains(), 40))))
    assert view.spec["suspend"] is True
    told = step(view, Snapshot((child_job(2),), (running(2),)))
    assert told.status.reason == "StoppedByUser"
    assert condition(told.status, "Suspended") == ("False", "Resumed")


def test_resources_that_do_not_fit_are_no_obstacle_to_keeping() -> None:
    view = stopped(set_suspend(at_rest(saved(trains(), 40)), resources={"gpusPerNode": 3}))
    assert keeping(view)[0].status["attempts"][-1]["keeps"]


def test_preparing_again_is_given_up_and_what_was_trained_is_kept() -> None:
    view = set_suspend(at_rest(saved(trains(), 40)), resources={"gpusPerNode": 2})
    view = set_suspend(view, suspend=False)
    view = with_status(view, again := step(view))
    assert again.status.phase == "Preparing"
    ends = step(stopped(view), Snapshot((child_job(kind="prepare"),)))
    assert ends.status.reason == "Ending"
    keeping(with_status(stopped(view), ends))


def test_stopping_a_job_that_has_ended_does_nothing() -> None:
    for code in (0, 65):
        view, _ = fail(begun(), code)
        assert step(stopped(view)).status.to_dict() == observed(view.status, 2)
