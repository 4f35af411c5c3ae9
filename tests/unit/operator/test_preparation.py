"""Preparing, as a series of plans: before any GPU is asked for, by the same rules as training, counted apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.status import Prepared
from finetune_operator.observed import JobView, Observed
from finetune_operator.plan import Create, Delete, Plan
from finetune_operator.plan.preparation import told

from tests.unit.operator.make import PREPARED, batch, ended, job, pod, result, running, step, with_status


def begun(**spec: Any) -> JobView:
    """A job whose first attempt at preparing is in the status, but not made yet."""
    view = job(**spec)
    return with_status(view, step(view))


def over(code: int, number: int = 1, **said: Any) -> Observed:
    """An attempt at preparing that has ended with a code."""
    words = result(code, number, kind="prepare", **said).model_dump_json(by_alias=True)
    done = batch(number, "prepare", complete=code == 0, failed_reason=None if code == 0 else "PodFailurePolicy")
    return Observed((done,), (ended(code, number, kind="prepare", terminated_message=words),))


def condition(planned: Plan) -> tuple[str, str, str]:
    found = next(c for c in planned.status.conditions or [] if c.type == "Prepared")
    return found.status, found.reason, found.message


def test_a_job_prepares_before_it_trains() -> None:
    first = step(job())
    assert (first.step, first.status.prepare_attempt, first.status.attempt) == (None, 1, None)
    assert (first.status.phase, condition(first)[0]) == ("Preparing", "Unknown")
    second = step(with_status(job(), first))
    assert isinstance(second.step, Create)
    made = second.step.children[-1]
    assert made["metadata"]["name"] == "demo-0a1b2-p1"
    assert made["spec"]["template"]["spec"]["containers"][0]["args"][0] == "prepare"


def test_it_says_what_it_is_doing() -> None:
    seen = Observed((batch(kind="prepare"),), (running(kind="prepare"),))
    view = begun()
    planned = step(view, seen)
    assert (planned.status.phase, planned.status.reason) == ("Preparing", "Fetching")
    view = with_status(view, planned)
    for activity in ("Validating", "Tokenizing"):
        view = replace(view, status={**view.status, "progress": progress(activity)})
        planned = step(view, seen)
        assert (planned.status.phase, planned.status.reason) == ("Preparing", activity)
        assert condition(planned)[:2] == ("Unknown", activity)
        assert planned.step is None


def progress(activity: str, step: int = 1) -> dict[str, Any]:
    return {
        "attempt": 1,
        "activity": activity,
        "step": step,
        "totalSteps": 10,
        "percent": step,
        "summary": f"{activity} {step}/10",
        "lastUpdateTime": "2026-01-31T12:00:00Z",
    }


def test_a_change_of_what_it_does_is_news_and_a_step_of_it_is_not() -> None:
    view = job({"progress": progress("Validating")})
    assert view.same_for_us(job({"progress": progress("Validating", 2)}))
    assert not view.same_for_us(job({"progress": progress("Tokenizing")}))


def test_training_follows_with_what_was_prepared() -> None:
    facts = {**PREPARED, "invalidRows": 3, "truncatedRows": 7, "gpuMemoryBytes": 12 * 2**30}
    planned = step(begun(), over(0, prepared=facts))
    status = planned.status
    state, reason, message = condition(planned)
    assert (state, reason) == ("True", "Completed")
    for words in ("1,200 rows", "45,678 tokens", "3 broken rows", "7 rows were cut", "12.0 GiB"):
        assert words in message
    assert status.prepared is not None
    assert status.prepared.rows == 1200
    assert (status.phase, status.attempt) == ("Starting", 1)
    view = with_status(job(), planned)
    create = step(view, Observed((batch(kind="prepare", complete=True),))).step
    assert isinstance(create, Create)
    assert create.children[-1]["metadata"]["name"] == "demo-0a1b2-1"


def test_what_is_done_already_goes_on_to_training_which_ends_at_once() -> None:
    artifact = {"uri": "pvc://claim/jobs/demo/artifact", "kind": "adapter", "digest": "sha256:1", "sizeBytes": 5}
    planned = step(begun(), over(0, artifact=artifact))
    assert planned.status.attempt == 1
    assert planned.status.artifact is None
    assert "already" in condition(planned)[2]


@pytest.mark.parametrize("code", [64, 65, 66, 77, 73, 74])
def test_bad_data_never_asks_for_a_gpu(code: int) -> None:
    planned = step(begun(), over(code, message="train.jsonl:7: output is empty"))
    assert planned.status.phase == "Failed"
    assert planned.status.message == "train.jsonl:7: output is empty"
    assert planned.status.attempt is None
    assert (condition(planned)[0], condition(planned)[2]) == ("False", "train.jsonl:7: output is empty")
    again = step(with_status(job(), planned), Observed((batch(kind="prepare", failed_reason="x"),)), after=1e6)
    assert (again.step, again.look_again) == (None, None)


def test_failures_back_off_until_the_limit_and_are_not_trainings() -> None:
    view = begun(backoffLimit=1)
    planned = step(view, over(69, message="no answer"))
    assert (planned.status.phase, planned.status.reason, planned.look_again) == ("Preparing", "RetryBackoff", 10)
    view = with_status(view, planned)
    view = with_status(view, step(view, over(69), after=10))
    assert (view.status["prepareAttempt"], view.status.get("attempt")) == (2, None)
    recovered = step(view, over(0, 2, prepared=PREPARED), after=20)
    assert recovered.status.attempts is not None
    assert recovered.status.attempts[-1].failures == 0
    failed = step(view, over(69, 2, message="no answer"), after=20)
    assert (failed.status.phase, failed.status.reason) == ("Failed", "BackoffLimitExceeded")
    assert "2 attempts at preparing the data failed" in (failed.status.message or "")


def test_a_disruption_is_not_counted() -> None:
    view = begun(backoffLimit=0)
    planned = step(view, over(75))
    assert planned.status.reason == "RetryBackoff"
    assert step(with_status(view, planned), over(75), after=10).status.prepare_attempt == 2


def test_why_it_does_not_start_is_said_and_ends_at_the_deadline() -> None:
    view = begun(startDeadlineSeconds=60, backoffLimit=0)
    stuck = Observed((batch(kind="prepare"),), (pod(kind="prepare", unschedulable="0/3 nodes"),))
    planned = step(view, stuck, after=59)
    assert (planned.status.phase, planned.status.reason) == ("Preparing", "Unschedulable")
    view = with_status(view, step(view, stuck, after=61))
    assert isinstance(step(view, stuck, after=61).step, Delete)
    planned = step(view, Observed(), after=70)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "StartDeadlineExceeded")


def test_a_wiped_status_goes_on_where_it_was() -> None:
    """With the Job that prepares; and without preparing anew where training was begun."""
    preparing = step(job(), Observed((batch(2, "prepare"),)))
    assert (preparing.step, preparing.status.prepare_attempt, preparing.status.attempt) == (None, 2, None)
    jobs = (batch(1, "prepare", complete=True), batch(3))
    training = step(job(), Observed(jobs, (running(3),)))
    assert (training.step, training.status.prepare_attempt, training.status.attempt) == (None, None, 3)


def test_plans_are_stable() -> None:
    view = begun()
    for seen in (
        Observed((batch(kind="prepare"),)),
        Observed((batch(kind="prepare"),), (pod(kind="prepare", unschedulable="0/3 nodes"),)),
        Observed((batch(kind="prepare"),), (running(kind="prepare"),)),
    ):
        first = step(view, seen)
        again = step(with_status(view, first), seen, after=60)
        assert again.status == first.status
        assert again.step is None


def test_what_is_prepared_is_counted_in_the_stage_s_unit_and_comes_with_its_warning() -> None:
    prepared = Prepared(digest="sha256:0", rows=20, tokens=400, trained_tokens=0, warning="all of them are alike")
    assert told(prepared, "prompts") == "20 prompts with 400 tokens to train on. Warning: all of them are alike."
