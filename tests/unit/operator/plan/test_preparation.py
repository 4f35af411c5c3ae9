"""Preparing, as a series of plans: before any GPU is requested, by the rules of training, counted separately."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.status import Prepared
from finetune_operator.plan import Create, Delete, Plan
from finetune_operator.plan.preparation import describe
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import format_time
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    NOW,
    PREPARED,
    child_job,
    ended,
    job,
    pod,
    preparing_progress,
    result,
    running,
    step,
    wait,
    with_status,
)


def begun(**spec: Any) -> JobView:
    """A job whose first prepare attempt is in the status, but its child job is not created yet."""
    view = job(**spec)
    return with_status(view, step(view))


def over(code: int, number: int = 1, **text: Any) -> Snapshot:
    """A prepare attempt that has ended with a code."""
    words = result(code, number, kind="prepare", **text).model_dump_json(by_alias=True)
    done = child_job(number, "prepare", complete=code == 0, failed_reason=None if code == 0 else "PodFailurePolicy")
    return Snapshot((done,), (ended(code, number, kind="prepare", terminated_message=words),))


def condition(planned: Plan) -> tuple[str, str, str]:
    found = next(c for c in planned.status.conditions or [] if c.type == "Prepared")
    return found.status, found.reason, found.message


def test_a_job_prepares_before_it_trains() -> None:
    first = step(job())
    assert (first.step, first.status.prepare_attempt, first.status.attempt) == (None, 1, None)
    assert (first.status.phase, condition(first)[0]) == ("Preparing", "Unknown")
    second = step(with_status(job(), first))
    assert isinstance(second.step, Create)
    made = second.step.manifests[-1]
    assert made["metadata"]["name"] == "demo-0a1b2-p1"
    assert made["spec"]["template"]["spec"]["containers"][0]["args"][0] == "prepare"


def test_the_status_says_what_preparing_does() -> None:
    seen = Snapshot((child_job(kind="prepare"),), (running(kind="prepare"),))
    view = begun()
    planned = step(view, seen)
    assert (planned.status.phase, planned.status.reason) == ("Preparing", "Fetching")
    view = with_status(view, planned)
    for activity in ("Validating", "Tokenizing"):
        view = replace(view, status={**view.status, "progress": preparing_progress(activity)})
        planned = step(view, seen)
        assert (planned.status.phase, planned.status.reason) == ("Preparing", activity)
        assert condition(planned)[:2] == ("Unknown", activity)
        assert planned.step is None


def test_training_follows_with_what_was_prepared() -> None:
    more = {"leftOutRows": 5, "packs": 300, "notUsed": "id (9 rows)"}
    facts = {**PREPARED, "invalidRows": 3, "truncatedRows": 7, "gpuMemoryBytes": 12 * 2**30, **more}
    planned = step(begun(), over(0, prepared=facts))
    status = planned.status
    state, reason, message = condition(planned)
    assert (state, reason) == ("True", "Completed")
    for words in ("1,200 rows in 300 packs", "45,678 tokens", "3 broken rows", "7 rows were cut", "12.0 GiB"):
        assert words in message
    for words in ("5 rows were left out", "not used: id (9 rows)"):
        assert words in message
    assert status.prepared is not None
    assert status.prepared.rows == 1200
    assert (status.phase, status.attempt) == ("Starting", 1)
    view = with_status(job(), planned)
    create = step(view, Snapshot((child_job(kind="prepare", complete=True),))).step
    assert isinstance(create, Create)
    assert create.manifests[-1]["metadata"]["name"] == "demo-0a1b2-1"


ARTIFACT = {"uri": "pvc://claim/jobs/demo/artifact", "kind": "adapter", "digest": "sha256:1", "sizeBytes": 5}
COPY = "s3://models/demo"


@pytest.mark.parametrize(
    ("output", "published"), [({}, None), ({}, COPY), ({"uri": COPY}, COPY)], ids=["no copy", "a copy", "the copy"]
)
def test_a_job_that_is_done_already_succeeds_without_a_gpu(output: dict[str, str], published: str | None) -> None:
    view = begun(output=output)
    found = over(0, artifact={**ARTIFACT, "published": published}, metrics={"trainLoss": "0.5"})
    status = step(view, found).status
    assert (status.phase, status.reason, status.attempt, status.attempts) == ("Succeeded", "Completed", None, None)
    assert status.artifact is not None
    assert (status.artifact.uri, status.metrics) == (ARTIFACT["uri"], {"trainLoss": "0.5"})
    assert (status.completion_time, [entry.reason for entry in status.prepare_attempts or []]) == (
        format_time(NOW),
        ["Completed"],
    )
    states = {entry.type: entry.status for entry in status.conditions or []}
    ended = {"Accepted": "True", "Prepared": "True", "Running": "False", "Succeeded": "True", "Reconciling": "False"}
    assert states == ended
    assert (status.message or "").startswith("Trained by an earlier run with the same spec; the adapter is at pvc:")
    again = step(replace(view, status=status.to_dict()), Snapshot((child_job(kind="prepare", complete=True),)))
    assert (again.status, again.step, wait(again)) == (status, None, None)


@pytest.mark.parametrize("published", [None, "s3://models/elsewhere", "nonsense"])
def test_a_training_attempt_makes_the_copy_that_an_existing_artifact_lacks(published: str | None) -> None:
    view = begun(output={"uri": COPY})
    planned = step(view, over(0, artifact={**ARTIFACT, "published": published}))
    assert (planned.status.phase, planned.status.attempt, planned.status.artifact) == ("Starting", 1, None)
    assert "already" in condition(planned)[2]


def test_an_existing_artifact_is_found_again_by_training_if_nobody_remembers_the_report() -> None:
    """The pod is gone, and its termination message with it."""
    planned = step(begun(), Snapshot((child_job(kind="prepare", complete=True),)))
    assert (planned.status.phase, planned.status.attempt) == ("Starting", 1)


@pytest.mark.parametrize("code", [64, 65, 66, 77, 73, 74])
def test_invalid_data_never_requests_a_gpu(code: int) -> None:
    planned = step(begun(), over(code, message="train.jsonl:7: output is empty"))
    assert planned.status.phase == "Failed"
    assert planned.status.message == "train.jsonl:7: output is empty"
    assert planned.status.attempt is None
    assert (condition(planned)[0], condition(planned)[2]) == ("False", "train.jsonl:7: output is empty")
    again = step(with_status(job(), planned), Snapshot((child_job(kind="prepare", failed_reason="x"),)), after=1e6)
    assert (again.step, wait(again)) == (None, None)


def test_failures_back_off_until_the_limit_and_do_not_count_for_training() -> None:
    view = begun(backoffLimit=1)
    planned = step(view, over(69, message="no answer"))
    assert (planned.status.phase, planned.status.reason, wait(planned)) == ("Preparing", "RetryBackoff", 10)
    view = with_status(view, planned)
    view = with_status(view, step(view, over(69), after=10))
    assert (view.status["prepareAttempt"], view.status.get("attempt")) == (2, None)
    recovered = step(view, over(0, 2, prepared=PREPARED), after=20)
    assert recovered.status.attempts is not None
    assert recovered.status.attempts[-1].failures == 0
    failed = step(view, over(69, 2, message="no answer"), after=20)
    assert (failed.status.phase, failed.status.reason) == ("Failed", "BackoffLimitExceeded")
    assert "2 prepare attempts failed" in (failed.status.message or "")


def test_a_disruption_is_not_counted() -> None:
    view = begun(backoffLimit=0)
    planned = step(view, over(75))
    assert planned.status.reason == "RetryBackoff"
    assert step(with_status(view, planned), over(75), after=10).status.prepare_attempt == 2


def test_the_status_says_why_it_does_not_start_until_the_deadline() -> None:
    view = begun(startDeadlineSeconds=60, backoffLimit=0)
    stuck = Snapshot((child_job(kind="prepare"),), (pod(kind="prepare", unschedulable="0/3 nodes"),))
    planned = step(view, stuck, after=59)
    assert (planned.status.phase, planned.status.reason) == ("Preparing", "Unschedulable")
    view = with_status(view, step(view, stuck, after=61))
    assert isinstance(step(view, stuck, after=61).step, Delete)
    planned = step(view, Snapshot(), after=70)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "StartDeadlineExceeded")


def test_a_wiped_status_continues_where_it_was() -> None:
    """With the child job that prepares; and without preparing again once training has begun."""
    preparing = step(job(), Snapshot((child_job(2, "prepare"),)))
    assert (preparing.step, preparing.status.prepare_attempt, preparing.status.attempt) == (None, 2, None)
    jobs = (child_job(1, "prepare", complete=True), child_job(3))
    training = step(job(), Snapshot(jobs, (running(3),)))
    assert (training.step, training.status.prepare_attempt, training.status.attempt) == (None, None, 3)


def test_plans_are_stable() -> None:
    view = begun()
    for seen in (
        Snapshot((child_job(kind="prepare"),)),
        Snapshot((child_job(kind="prepare"),), (pod(kind="prepare", unschedulable="0/3 nodes"),)),
        Snapshot((child_job(kind="prepare"),), (running(kind="prepare"),)),
    ):
        first = step(view, seen)
        again = step(with_status(view, first), seen, after=60)
        assert again.status == first.status
        assert again.step is None


def test_the_description_counts_in_the_unit_of_the_stage_and_has_the_warning() -> None:
    prepared = Prepared(digest="sha256:0", rows=20, tokens=400, trained_tokens=0, warning="all of them are alike")
    assert describe(prepared, "prompts") == "20 prompts with 400 tokens to train on. Warning: all of them are alike."
