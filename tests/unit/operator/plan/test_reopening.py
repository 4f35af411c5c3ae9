"""A job that has Failed is open again: by spec.retry, or with the jobs that it failed for. A success is final."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.status import MAX_ATTEMPTS
from finetune_operator.plan import Delete
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Dependencies, Read, Snapshot

from tests.unit.operator.make import (
    MOMENT,
    SETTINGS,
    WORK,
    among,
    begun,
    child_job,
    condition,
    ended,
    fail,
    job,
    needs,
    other,
    over,
    prepared,
    result,
    running,
    saved,
    step,
    succeeded,
    with_status,
)

LEFT = Snapshot((child_job(failed_reason="x"),))
FROM_SFT = {"model": {"fromJob": "sft"}}
FROM_TWO: dict[str, Any] = {
    "stage": "ppo",
    "model": {"fromJob": "sft"},
    "ppo": {"rewardModel": {"fromJob": "rm"}},
}


def retry(view: JobView, value: int = 1, **spec: Any) -> JobView:
    """The job after somebody has set spec.retry."""
    return replace(view, spec={**view.spec, "retry": value, **spec}, generation=view.generation + 1)


def exhausted(**spec: Any) -> JobView:
    """A job that has Failed because its attempts are used up."""
    view, planned = fail(saved(begun(backoffLimit=0, **spec), 40), 70)
    assert planned.status.reason == "BackoffLimitExceeded"
    return view


def refused(view: JobView, *others: JobView) -> JobView:
    """The job once it has failed for the sake of others."""
    planned = step(view, among(*others))
    assert (planned.status.phase, planned.status.reason) == ("Failed", "DependencyFailed")
    return with_status(view, planned)


def test_a_retry_continues_at_once_with_a_new_budget() -> None:
    view = retry(exhausted())
    planned = step(view, LEFT, after=1)
    status = planned.status
    assert (status.phase, status.attempt, status.retry, status.completion_time) == ("Starting", 2, 1, None)
    assert condition(status, "Failed") == ("False", "Reopened")
    assert condition(status, "Prepared")[0] == "True"
    assert status.observed_generation == view.generation
    first, second = status.attempts or []
    assert (first.failures, first.retry) == (1, 1)
    assert (second.failures, second.stalled, second.retry) == (0, 0, None)
    again, planned = fail(with_status(view, planned), 70, after=2)
    assert (planned.status.reason, again.status["attempts"][-1]["failures"]) == ("BackoffLimitExceeded", 1)
    assert "set spec.retry to 2" in (planned.status.message or "")


def test_a_value_of_retry_is_used_once() -> None:
    view = retry(exhausted())
    view = with_status(view, step(view, LEFT, after=1))
    view, _ = fail(view, 70, after=2)
    assert step(view, LEFT, after=3).status.to_dict() == view.status
    assert step(retry(view, 2), LEFT, after=3).status.attempt == 3


@pytest.mark.parametrize("life", ["new", "running", "succeeded"])
def test_a_retry_of_a_job_that_has_not_failed_changes_nothing_but_is_used_up(life: str) -> None:
    runs = Snapshot((child_job(),), (running(),))
    view, snapshot = {
        "new": (job(), Snapshot()),
        "running": (with_status(begun(), step(begun(), runs)), runs),
        "succeeded": (job(over("Succeeded")), LEFT),
    }[life]
    plain, planned = step(view, snapshot), step(retry(view), snapshot)
    assert planned.status.retry == 1
    assert planned.status.phase == plain.status.phase
    assert planned.status.attempts == plain.status.attempts
    if life == "running":
        view, planned = fail(with_status(retry(view, backoffLimit=0), planned), 70)
        assert planned.status.phase == "Failed"
        assert step(view, LEFT).status.phase == "Failed"


def test_a_job_that_has_also_succeeded_is_never_opened() -> None:
    both = over("Failed")
    both["conditions"] += over("Succeeded")["conditions"]
    assert step(retry(job(both))).status.completion_time is None
    assert condition(step(retry(job(both))).status, "Failed")[0] == "True"


@pytest.mark.parametrize("code", [65, 66, 77])
def test_data_that_was_wrong_is_prepared_again(code: int) -> None:
    view = job()
    view = with_status(view, step(view))
    bad = result(code, kind="prepare")
    snapshot = Snapshot(
        (child_job(kind="prepare", failed_reason="x"),),
        (ended(code, kind="prepare", terminated_message=bad.model_dump_json(by_alias=True)),),
    )
    view = with_status(view, step(view, snapshot))
    assert view.status["phase"] == "Failed"
    planned = step(retry(view), snapshot, after=1)
    assert (planned.status.phase, planned.status.prepare_attempt, planned.status.attempt) == ("Preparing", 2, None)
    assert condition(planned.status, "Prepared")[0] == "Unknown"


def test_data_that_a_training_attempt_finds_wrong_is_prepared_again_before_it_trains() -> None:
    view, _ = fail(begun(), 65)
    planned = step(retry(view), LEFT, after=1)
    assert (planned.status.phase, planned.status.prepare_attempt, planned.status.attempt) == ("Preparing", 1, 1)
    view = with_status(retry(view), planned)
    done = Snapshot((*LEFT.child_jobs, child_job(kind="prepare", complete=True)), (ended(0, kind="prepare"),))
    planned = step(view, done, after=2)
    assert (planned.status.phase, planned.status.attempt) == ("Starting", 2)


def test_a_spec_that_was_refused_is_checked_again_with_todays_settings() -> None:
    model = {"source": "hf://org/base@" + "0" * 40, "trustRemoteCode": True}
    view = job(model=model)
    view = with_status(view, step(view))
    assert (view.status["phase"], view.status["reason"]) == ("Failed", "InvalidSpec")
    same = step(retry(view), after=1)
    assert (same.status.phase, same.status.reason, same.status.retry) == ("Failed", "InvalidSpec", 1)
    allowed = SETTINGS.model_copy(update={"allow_remote_code": True})
    assert step(view, after=1, settings=allowed).status.phase == "Failed"
    assert step(retry(view), after=1, settings=allowed).status.phase == "Preparing"


def test_a_retry_uses_the_image_of_today_and_the_resolved_job_of_the_checkpoints() -> None:
    view = exhausted()
    newer = SETTINGS.model_copy(update={"trainer_image": "registry.example/finetune-trainer:2"})
    planned = step(retry(view), LEFT, after=1, settings=newer)
    assert planned.status.resolved is not None
    assert planned.status.resolved.image == "registry.example/finetune-trainer:2"
    assert planned.status.resolved.digest == view.status["resolved"]["digest"]
    foreign = {**view.status["resolved"], "digest": "sha256:of-an-earlier-release"}
    planned = step(retry(replace(view, status={**view.status, "resolved": foreign})), LEFT, after=1, settings=newer)
    assert planned.status.resolved is not None
    assert planned.status.resolved.to_dict() == foreign


def test_a_pod_that_is_left_ends_before_the_next_attempt_begins() -> None:
    view = retry(exhausted())
    planned = step(view, Snapshot((child_job(),)), after=1)
    assert (planned.status.phase, planned.status.attempt) == ("Starting", 1)
    assert isinstance(planned.step, Delete)
    view = with_status(view, planned)
    planned = step(view, LEFT, after=2)
    assert ((planned.status.attempts or [])[-1].number, (planned.status.attempts or [])[-1].failures) == (2, 0)


def test_no_retry_makes_more_attempts_than_a_job_can_have() -> None:
    view = exhausted()
    last = {"number": MAX_ATTEMPTS, "job": "demo-0a1b2-999", "state": "Ended", "startTime": MOMENT, "endTime": MOMENT}
    view = replace(view, status={**view.status, "attempts": [last], "attempt": MAX_ATTEMPTS})
    planned = step(retry(view), Snapshot(), after=1)
    assert (planned.status.phase, planned.status.attempt) == ("Failed", MAX_ATTEMPTS)
    assert "recreate the job" in (planned.status.message or "")


def test_a_job_without_time_left_says_so_again() -> None:
    view = exhausted()
    view = replace(view, status={**view.status, "activeSeconds": 100})
    planned = step(retry(view, activeDeadlineSeconds=100), LEFT, after=1)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "DeadlineExceeded")
    assert step(retry(view, activeDeadlineSeconds=200), LEFT, after=1).status.attempt == 2


FAILED = other("sft", status=over("Failed", "InvalidData", "rows.jsonl:7: output is empty"))
OPEN = other("sft", status={"phase": "Preparing", "reason": "Fetching"})


def test_jobs_continue_with_the_job_that_they_failed_for() -> None:
    view = refused(job(**FROM_SFT), FAILED)
    assert "set spec.retry of job sft to 1" in view.status["message"]
    assert step(view, among(FAILED), after=1).status.to_dict() == view.status
    planned = step(view, among(OPEN), after=1)
    assert (planned.status.phase, planned.status.reason) == ("Pending", "WaitingForJob")
    assert (condition(planned.status, "Failed")[0], planned.status.completion_time) == ("False", None)
    assert planned.status.retry is None
    done = step(view, among(succeeded("sft")), after=1)
    assert (done.status.phase, done.status.prepare_attempt) == ("Preparing", 1)


def test_a_chain_of_three_continues_link_by_link_and_fails_again_if_the_first_does() -> None:
    second = replace(refused(job(**FROM_SFT), FAILED), name="dpo")
    third = refused(job(model={"fromJob": "dpo"}), second)
    assert "Fix that job." in third.status["message"]
    assert step(third, among(second), after=1).status.phase == "Failed"
    waiting = with_status(second, step(second, among(OPEN), after=1))
    planned = step(third, among(waiting), after=1)
    assert (planned.status.phase, planned.status.reason) == ("Pending", "WaitingForJob")
    third = with_status(third, planned)
    failed_again = with_status(waiting, step(waiting, among(FAILED), after=2))
    assert failed_again.status["reason"] == "DependencyFailed"
    assert step(third, among(failed_again), after=2).status.reason == "DependencyFailed"


@pytest.mark.parametrize("sft", [FAILED, None, replace(OPEN, deleting=True)])
def test_a_job_of_two_others_waits_for_both(sft: JobView | None) -> None:
    bad = other("rm", "rm", over("Failed", "Diverged"))
    view = refused(job(**FROM_TWO), FAILED, bad)
    rm = other("rm", "rm", {"phase": "Running"})
    half = Snapshot(dependencies=Dependencies({one.name: one for one in (sft, rm) if one}, WORK))
    assert step(view, half, after=1).status.to_dict() == view.status
    assert step(view, among(OPEN, rm), after=1).status.phase == "Pending"


def test_a_job_that_would_fail_again_is_not_written() -> None:
    """The claim of the artifact is still gone, so nothing changes, however often somebody looks."""
    planned = step(job(**FROM_SFT), among(succeeded("sft"), claims={}))
    assert planned.status.reason == "DependencyFailed"
    view = with_status(job(**FROM_SFT), planned)
    order, planned = needs(view, among(succeeded("sft"), claims={}), after=900)
    assert planned.status.to_dict() == view.status
    assert order == [Read.JOB, Read.PRESETS, Read.DEPENDENCIES]
    assert step(view, among(succeeded("sft")), after=900).status.phase == "Preparing"


def test_a_job_that_failed_by_itself_does_not_follow_others() -> None:
    view = job(over("Failed", "InvalidSpec"), **FROM_SFT)
    assert step(view, among(OPEN)).status.phase == "Failed"
    assert step(prepared(), among(OPEN)).status.phase == "Starting"


def test_a_retry_of_a_suspended_job_waits_until_it_is_resumed_and_keeps_its_budget() -> None:
    view = retry(exhausted(), suspend=True)
    planned = step(view, LEFT, after=1)
    assert (planned.status.phase, planned.status.retry, planned.status.attempt) == ("Suspended", 1, 1)
    view = with_status(retry(view, suspend=False), planned)
    status = step(view, LEFT, after=900).status
    assert (status.attempt, (status.attempts or [])[-1].failures) == (2, 0)


def test_a_retry_of_a_job_that_is_to_be_stopped_makes_the_artifact_of_its_checkpoint() -> None:
    runs = Snapshot((child_job(),), (running(),))
    view = begun(backoffLimit=0)
    view, planned = fail(saved(with_status(view, step(view, runs)), 40), 70)
    assert planned.status.phase == "Failed"
    status = step(retry(view, stop="keep"), LEFT, after=1).status
    assert (status.phase, status.attempt, (status.attempts or [])[-1].keeps) == ("Starting", 2, True)
