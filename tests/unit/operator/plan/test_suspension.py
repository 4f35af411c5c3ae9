"""spec.suspend: an attempt ends for it in every phase, and the next begins when the job is resumed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.plan import Create, Delete
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Read, Snapshot

from tests.unit.operator.make import (
    NOW,
    SETTINGS,
    among,
    begun,
    child_job,
    condition,
    ended,
    fail,
    job,
    kept,
    needs,
    observed,
    pod,
    prepared,
    result,
    running,
    saved,
    step,
    with_status,
)

SUSPENDED = ("True", "SuspendedByUser")
UNDER_WAY = Snapshot((child_job(),), (running(),))
LEAVING = Snapshot((child_job(deleting=True),), (replace(running(), deleting=True),))


def set_suspend(view: JobView, suspend: bool = True, **spec: Any) -> JobView:
    """The job after the user has changed its spec."""
    return replace(view, spec={**view.spec, "suspend": suspend, **spec}, generation=view.generation + 1)


def trains() -> JobView:
    """A job whose first attempt runs."""
    return with_status(job_view := begun(), step(job_view, UNDER_WAY))


def stopping(view: JobView, snapshot: Snapshot = UNDER_WAY) -> JobView:
    """The job once the operator ends its attempt for the suspension."""
    return with_status(view, step(set_suspend(view), snapshot))


def at_rest(view: JobView | None = None) -> JobView:
    """A suspended job that was training, whose pods are gone."""
    view = set_suspend(stopping(view or trains()))
    return with_status(view, step(view))


PHASES: dict[str, tuple[JobView, Snapshot]] = {
    "preparing": (with_status(job(), step(job())), Snapshot((child_job(kind="prepare"),), (running(kind="prepare"),))),
    "starting": (begun(), Snapshot((child_job(),), (pod(unschedulable="no node fits"),))),
    "running": (trains(), UNDER_WAY),
    "somebody suspended the child job": (begun(), Snapshot((child_job(suspended=True),))),
}


@pytest.mark.parametrize("phase", PHASES)
def test_an_attempt_is_ended_for_a_suspension_and_not_counted(phase: str) -> None:
    view, snapshot = PHASES[phase]
    planned = step(set_suspend(view), snapshot)
    assert planned.step is None, "the cause is written before the child job is deleted"
    assert (planned.status.phase, planned.status.reason) == (view.status["phase"], "Ending")
    assert condition(planned.status, "Suspended") == ("False", "Ending")
    view = with_status(set_suspend(view), planned)
    assert isinstance(step(view, snapshot).step, Delete)
    gone = step(view)
    assert (gone.status.phase, gone.status.reason, gone.step) == ("Suspended", "SuspendedByUser", None)
    assert condition(gone.status, "Suspended") == SUSPENDED
    assert condition(gone.status, "Running") == ("False", "SuspendedByUser")
    [attempt] = gone.status.attempts or gone.status.prepare_attempts or []
    assert (attempt.state, attempt.reason, attempt.failures, attempt.stalled) == ("Ended", "SuspendedByUser", 0, 0)
    assert gone.look_again(NOW) is None
    assert step(with_status(view, gone), after=3600).status == gone.status, "a suspended job costs nothing"


@pytest.mark.parametrize(
    "view",
    [
        job(),
        job(stage="dpo", datasets=[{"source": "pvc://models/a", "format": "preference"}], model={"fromJob": "first"}),
        prepared(),
        fail(begun(), 70)[0],
    ],
    ids=["new", "waiting for a job", "prepared", "in back-off"],
)
def test_a_suspended_job_begins_nothing(view: JobView) -> None:
    planned = step(set_suspend(view), among())
    assert (planned.status.phase, planned.status.reason, planned.step) == ("Suspended", "SuspendedByUser", None)
    assert len(planned.status.attempts or []) == len(view.status.get("attempts", []))
    assert planned.status.resolved is None or view.status.get("resolved"), "nothing is fixed before it begins"
    assert '{"spec":{"suspend":false}}' in (planned.status.message or "")
    view = set_suspend(with_status(view, planned), suspend=False)
    resumed = step(view, among())
    expected = "Pending" if "fromJob" in view.spec["model"] else "Starting"
    assert resumed.status.phase in (expected, "Preparing")
    assert condition(resumed.status, "Suspended") == ("False", "Resumed")


def test_resuming_is_a_new_attempt_at_once_from_the_newest_checkpoint() -> None:
    view = at_rest(saved(trains(), 40))
    assert "from the newest checkpoint (last reported: step 40)" in view.status["message"]
    view = set_suspend(view, suspend=False)
    resumed = step(view)
    assert (resumed.status.phase, resumed.status.attempt, resumed.step) == ("Starting", 2, None)
    assert condition(resumed.status, "Suspended") == ("False", "Resumed")
    created = step(with_status(view, resumed))
    assert isinstance(created.step, Create)
    assert created.step.manifests[-1]["metadata"]["name"] == "demo-0a1b2-2"


def test_a_resumed_job_waits_for_no_back_off() -> None:
    view, _ = fail(begun(), 70)
    view = with_status(view, step(set_suspend(view)))
    assert step(set_suspend(view, suspend=False)).status.attempt == 2


def test_a_job_that_is_resumed_before_its_pods_are_gone_waits_for_them() -> None:
    view = set_suspend(stopping(trains()), suspend=False)
    waiting = step(view, LEAVING)
    assert (waiting.status.attempt, waiting.step) == (1, None)
    planned = step(view)
    assert [attempt.reason for attempt in planned.status.attempts or []] == ["SuspendedByUser"]
    view = with_status(view, planned)
    assert step(view).status.attempt == 2
    again = set_suspend(view)
    assert step(again).status.phase == "Suspended"


@pytest.mark.parametrize("how", ["pods", "child job", "result"])
@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (65, "Failed"), (75, None), (137, None), (73, None)])
def test_what_an_attempt_came_to_by_itself_counts(how: str, code: int, phase: str | None) -> None:
    view = set_suspend(stopping(trains()))
    snapshot = Snapshot()
    if how == "pods":
        snapshot = Snapshot((child_job(deleting=True),), (ended(code, deleting=True),))
    elif how == "child job":
        over = child_job(complete=True) if code == 0 else child_job(failed_reason="PodFailurePolicy")
        snapshot = Snapshot((over,), (ended(code),))
    else:
        view.status["result"] = result(code, reason="Completed").to_dict()
    planned = step(view, snapshot)
    if how == "pods" and phase is None:
        assert planned.status.attempts == step(view, LEAVING).status.attempts, "it ends with its pods"
        planned = step(view)
    assert planned.status.phase == (phase or "Suspended")
    assert condition(planned.status, "Suspended")[0] == ("False" if phase else "True")
    [attempt] = planned.status.attempts or []
    assert attempt.failures == 0


def test_the_result_of_another_attempt_is_no_evidence() -> None:
    view = set_suspend(stopping(trains()))
    view.status["result"] = result(0, attempt=7).to_dict()
    assert step(view).status.phase == "Suspended"


def test_an_attempt_that_had_failed_before_is_counted() -> None:
    planned = step(set_suspend(trains()), Snapshot((child_job(failed_reason="x"),), (ended(70),)))
    assert planned.status.phase == "Suspended"
    [attempt] = planned.status.attempts or []
    assert (attempt.reason, attempt.failures) == ("InternalError", 1)


def test_a_child_job_that_no_watch_has_shown_yet_is_looked_for() -> None:
    """The operator ended after it had created it."""
    order, planned = needs(set_suspend(begun()))
    assert order == [Read.JOB, Read.CHILD_JOB, Read.PODS]
    view = with_status(set_suspend(begun()), planned)
    assert step(view).status.phase == "Suspended"
    late = step(with_status(view, step(view)), Snapshot((child_job(),)))
    assert isinstance(late.step, Delete), "it may come later still"


def test_containers_of_others_do_not_keep_a_suspended_job() -> None:
    view = set_suspend(stopping(trains()))
    planned = step(view, Snapshot((child_job(),), (kept(75),)))
    assert isinstance(planned.step, Delete)


@pytest.mark.parametrize("code", [0, 65])
def test_suspending_a_job_that_has_ended_does_nothing(code: int) -> None:
    view, _ = fail(begun(), code)
    planned = step(set_suspend(view), Snapshot((child_job(complete=True),)))
    assert planned.step is None
    assert planned.status.to_dict() == observed(view.status, 2)


def test_a_suspended_job_whose_terms_cannot_be_read_gives_its_gpus_back() -> None:
    view = trains()
    view = replace(view, status={**view.status, "resolved": {**view.status["resolved"], "job": "of a later release"}})
    assert step(set_suspend(view), UNDER_WAY).status.reason == "Ending"
    assert isinstance(step(set_suspend(stopping(view)), UNDER_WAY).step, Delete)


def test_disruptions_in_a_row_are_not_those_around_a_suspension() -> None:
    view = with_status(job_view := begun(), step(job_view, UNDER_WAY))
    for _ in range(4):
        view = at_rest(view)
        view = with_status(view, step(set_suspend(view, suspend=False)))
        view = set_suspend(view, suspend=False)
        number = view.status["attempt"]
        view = with_status(view, step(view, Snapshot((child_job(number),), (running(number),))))
        snapshot = Snapshot((child_job(number),), (running(number),))
        view = with_status(view, step(set_suspend(view), snapshot))
        view = set_suspend(view)
        view = with_status(view, step(view))
        assert view.status["phase"] == "Suspended"
    assert view.status["attempts"][-1]["stalled"] == 0
    assert SETTINGS.trainer_image in view.status["resolved"]["image"]
