"""Training, from prepared data to its end, as a series of plans: each starts from the status of the previous plan."""

from __future__ import annotations

import pytest
from finetune_operator.plan import Delete, Plan
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    begun,
    child_job,
    condition,
    ended,
    fail,
    job,
    reporting,
    result,
    retried,
    running,
    saved,
    step,
    wait,
    with_status,
)


def over(planned: Plan) -> bool:
    """Whether nothing remains to do."""
    return planned.step is None and wait(planned) is None


def test_running_when_every_pod_runs() -> None:
    planned = step(begun(), Snapshot((child_job(),), (running(),)))
    assert planned.status.phase == "Running"
    assert condition(planned.status, "Running") == ("True", "Running")
    assert planned.status.attempts is not None
    assert planned.status.attempts[-1].state == "Running"


def test_success_copies_what_the_trainer_reports() -> None:
    artifact = {"uri": "pvc://kept/jobs/demo/artifact", "kind": "adapter", "digest": "sha256:1", "sizeBytes": 5}
    text = result(0, message="done", artifact=artifact, metrics={"loss": "0.5"}).model_dump_json(by_alias=True)
    planned = step(begun(), Snapshot((child_job(complete=True),), (ended(0, terminated_message=text),)))
    status = planned.status
    assert (status.phase, condition(status, "Succeeded")) == ("Succeeded", ("True", "Completed"))
    assert status.artifact is not None
    assert status.artifact.uri == artifact["uri"]
    assert status.metrics == {"loss": "0.5"}
    assert status.completion_time == "2026-01-31T12:00:00Z"
    assert over(step(with_status(job(), planned), Snapshot((child_job(complete=True),)), after=1e6))


def test_a_finished_job_whose_children_are_gone_stays_finished() -> None:
    done = with_status(job(), step(begun(), Snapshot((child_job(complete=True),), (ended(0),))))
    planned = step(done, Snapshot())
    assert over(planned)
    assert planned.status.phase == "Succeeded"


@pytest.mark.parametrize("code", [64, 65, 66, 77, 72, 73, 74])
def test_an_error_that_another_attempt_cannot_cure_fails_at_once_with_the_trainers_message(code: int) -> None:
    text = result(code, message="train.jsonl:7: output is empty").model_dump_json(by_alias=True)
    planned = step(begun(), Snapshot((child_job(failed_reason="x"),), (ended(code, terminated_message=text),)))
    assert planned.status.phase == "Failed"
    assert planned.status.message == "train.jsonl:7: output is empty"
    assert condition(planned.status, "Failed")[0] == "True"
    assert over(step(with_status(job(), planned), Snapshot((child_job(failed_reason="x"),)), after=1e6))


def test_progress_counts_from_the_checkpoint_that_an_attempt_resumes_from() -> None:
    """The checkpoint of step 200 is broken. A checkpoint of step 150 is progress then."""
    view, _ = fail(saved(begun(), 200), 75)
    view = retried(view, Snapshot(), after=10)
    under_way = Snapshot((child_job(2),), (running(2),))
    view = with_status(view, step(reporting(saved(view, 100), 2, startStep=100), under_way, after=20))
    assert view.status["message"] == "Training: attempt 2 resumes from checkpoint step 100."
    view = with_status(view, step(saved(view, 150, attempt=2), under_way, after=30))
    assert view.status["message"] == "Training: attempt 2 resumes from checkpoint step 100."
    _, planned = fail(view, 75, after=40)
    assert planned.status.attempts is not None
    assert planned.status.attempts[-1].stalled == 0
    assert "from the newest checkpoint (last reported: step 150)" in (planned.status.message or "")

    _, planned = fail(saved(view, 100), 75, after=40)
    assert planned.status.attempts is not None
    assert planned.status.attempts[-1].stalled == 1, "it saved nothing"


def test_the_message_says_where_an_attempt_resumes_before_it_begins_and_while_it_runs() -> None:
    view, planned = fail(saved(begun(), 40), 75)
    message = planned.status.message or ""
    begins = "Attempt 2 begins at 2026-01-31T12:00:10Z"
    assert f"{begins} from the newest checkpoint (last reported: step 40)." in message
    view, under_way = retried(view, Snapshot(), after=10), Snapshot((child_job(2),), (running(2),))
    view = with_status(view, step(view, under_way, after=20))
    assert view.status["message"] == "Training: attempt 2.", "it has not reported yet"
    resumed = reporting(saved(view, 70, attempt=2), 2, startStep=60)
    assert step(resumed, under_way, after=30).status.message == "Training: attempt 2 resumes from checkpoint step 60."
    anew = step(reporting(view, 2, startStep=0), under_way, after=30)
    assert anew.status.message == "Training: attempt 2 starts from the beginning."
    assert step(begun(), Snapshot((child_job(),), (running(),))).status.message == "Training."
    assert f"{begins}." in (fail(begun(), 75)[1].status.message or ""), "a checkpoint may have been missed"


def test_an_invalid_job_fails_with_what_to_do() -> None:
    view = job(training={"epochs": 1, "globalBatchSize": 6}, resources={"gpusPerNode": 4})
    planned = step(view)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "InvalidSpec")
    assert "multiple of 4" in (planned.status.message or "")
    assert planned.step is None


def test_a_child_job_that_outlives_its_finished_job_is_deleted() -> None:
    done = with_status(job(), step(begun(), Snapshot((child_job(complete=True),), (ended(0),))))
    assert isinstance(step(done, Snapshot((child_job(2),))).step, Delete)
