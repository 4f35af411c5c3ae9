"""What the status shows of the trainer's reports: those of the attempt at hand, and that they are missed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.status import FineTuneJobStatus
from finetune_operator.names import Kind
from finetune_operator.plan import Create, Delete, Plan, SetProgress
from finetune_operator.views.job import JobView
from finetune_operator.views.pod import PodView
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    NOW,
    SETTINGS,
    TWO_NODES,
    begun,
    child_job,
    condition,
    ended,
    fail,
    job,
    preparing_progress,
    reporting,
    result,
    retried,
    running,
    saved,
    step,
    wait,
    with_status,
)

PROGRESS = reporting(job()).status["progress"]


def preparing() -> JobView:
    view = job()
    return with_status(view, step(view))


def going(view: JobView, kind: Kind = "train") -> JobView:
    """The first attempt of a kind runs."""
    return with_status(view, step(view, pods(kind)))


def pods(kind: Kind = "train", attempt: int = 1, **changes: Any) -> Snapshot:
    return Snapshot((child_job(attempt, kind),), (replace(running(attempt, kind=kind), **changes),))


KINDS: dict[Kind, tuple[JobView, str]] = {"prepare": (preparing(), "Prepared"), "train": (begun(), "Running")}


def text(status: FineTuneJobStatus, kind: str) -> str:
    return next(c.message for c in status.conditions or [] if c.type == kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_attempt_that_never_reports_is_told_once_with_what_to_check(kind: Kind) -> None:
    fresh, told_by = KINDS[kind]
    view = going(fresh, kind)
    before = step(view, pods(kind), after=299)
    assert (before.status.to_dict(), wait(before, after=299)) == (view.status, 1)
    planned = step(view, pods(kind), after=301)
    status = planned.status
    assert (status.phase, status.reason) == (view.status["phase"], "NotReporting")
    words = ("No report since 2026-01-31T12:00:00Z", "ServiceAccount finetune-trainer", "RoleBinding", "API server")
    for said in (status.message or "", text(status, told_by)):
        assert all(word in said for word in words)
    again = step(with_status(view, planned), pods(kind), after=4000)
    assert (again.status, again.step, wait(again, after=4000)) == (status, None, None)


def test_an_attempt_that_stops_to_report_is_told_and_taken_back_when_reports_come() -> None:
    view = reporting(going(begun()), after=100)
    assert wait(step(view, pods(), after=399), after=399) == 1
    planned = step(view, pods(), after=401)
    assert condition(planned.status, "Running") == ("True", "NotReporting")
    assert "No report since 2026-01-31T12:01:40Z" in (planned.status.message or "")
    back = step(reporting(with_status(view, planned), after=500), pods(), after=500)
    assert (back.status.reason, back.status.message) == ("Running", "Training.")
    assert text(back.status, "Running") == "All pods run."
    assert wait(back, after=500) == 300


def test_the_bound_follows_a_rare_report_interval() -> None:
    rare = SETTINGS.model_copy(update={"progress_interval_seconds": 600})
    view = begun()
    view = with_status(view, step(view, settings=rare))
    accepted = step(job(), settings=rare).status.resolved
    assert accepted is not None
    view = replace(view, status={**view.status, "resolved": accepted.to_dict()})
    view = with_status(view, step(view, pods()))
    assert step(view, pods(), after=2399).status.reason == "Running"
    assert step(view, pods(), after=2401).status.reason == "NotReporting"


def test_pods_that_start_again_get_their_time_to_report() -> None:
    """After a suspension."""
    view = reporting(going(begun()))
    late = pods(started=NOW + timedelta(seconds=5000))
    assert step(view, late, after=5001).status.reason == "Running"


def test_the_account_that_the_job_names_is_the_one_to_check() -> None:
    view = going(begun(resources={"serviceAccountName": "robot"}))
    message = step(view, pods(), after=301).status.message or ""
    assert "ServiceAccount robot and RoleBinding finetune-trainer-robot" in message


def test_the_time_of_a_report_that_is_no_time_counts_as_none() -> None:
    view = reporting(going(begun()), lastUpdateTime="yesterday")
    assert step(view, pods(), after=301).status.reason == "NotReporting"


STALE: dict[str, tuple[JobView, Snapshot, dict[str, Any]]] = {
    "prepare -> train": (begun(), Snapshot(), preparing_progress("Tokenizing")),
    "prepare -> train, with kind": (begun(), Snapshot(), {**PROGRESS, "kind": "prepare"}),
    "retry of training": (retried(fail(begun(), 75)[0], Snapshot(), after=10), Snapshot(), PROGRESS),
    "while the pod starts": (begun(), Snapshot((child_job(),)), preparing_progress("Tokenizing")),
    "backoff": (fail(begun(), 75)[0], Snapshot(), PROGRESS),
    "a late report of an earlier attempt": (
        going(retried(fail(begun(), 75)[0], Snapshot(), after=10)),
        pods(attempt=2),
        PROGRESS,
    ),
    "failed while preparing": (
        with_status(
            preparing(),
            step(
                preparing(),
                Snapshot((child_job(kind="prepare", failed_reason="x"),), (ended(65, kind="prepare"),)),
            ),
        ),
        Snapshot(),
        preparing_progress("Fetching"),
    ),
}
"""A job, the cluster, and a progress that is not the attempt's at hand."""


@pytest.mark.parametrize("case", STALE)
def test_the_progress_of_another_attempt_is_removed_before_anything_else(case: str) -> None:
    fresh, snapshot, progress = STALE[case]
    view = replace(fresh, status={**fresh.status, "progress": progress})
    written = with_status(view, step(view, snapshot, after=11))
    planned = step(written, snapshot, after=11)
    assert planned.step == SetProgress(None)
    cleared = replace(written, status={name: v for name, v in written.status.items() if name != "progress"})
    assert not isinstance(step(cleared, snapshot, after=11).step, SetProgress)


@pytest.mark.parametrize("activity", ["Fetching", "Tokenizing", "Loading", "Training"])
def test_the_progress_of_the_attempt_at_hand_stays_whatever_it_does(activity: str) -> None:
    """A training attempt prepares if nothing is prepared any more."""
    view = reporting(going(begun()), activity=activity)
    assert step(view, pods()).step is None


def successful(metrics: dict[str, str] | None, view: JobView | None = None) -> JobView:
    words = result(0, metrics=metrics).model_dump_json(by_alias=True)
    done = Snapshot((child_job(complete=True),), (ended(0, terminated_message=words),))
    return with_status(view or begun(), step(view or begun(), done))


def final(view: JobView) -> tuple[str | None, str | None, str | None] | None:
    """PROGRESS, LOSS and ETA that the operator writes; None if it writes nothing."""
    write = step(view).step
    if not isinstance(write, SetProgress):
        return None
    progress = write.progress
    assert progress is not None
    again = step(replace(view, status={**view.status, "progress": progress.to_dict()}))
    assert again.step is None, "once is enough"
    return progress.summary, progress.loss, progress.eta


METRICS = {"steps": "80", "finalLoss": "0.110201", "trainLoss": "0.5"}


@pytest.mark.parametrize(
    "progress", [None, PROGRESS, preparing_progress("Fetching"), {**PROGRESS, "activity": "Loading", "attempt": 7}]
)
def test_a_success_whose_last_report_is_missing_shows_its_metrics(progress: dict[str, Any] | None) -> None:
    """Its pod could not report, or an earlier job did the training."""
    view = successful(METRICS)
    if progress is not None:
        view = replace(view, status={**view.status, "progress": progress})
    assert final(view) == ("80/80 (100%)", "0.1102", "0s")


def test_a_success_that_was_reported_stays_as_it_was_reported() -> None:
    assert final(reporting(successful(METRICS), step=80, summary="80/80 (100%)")) is None


def test_a_success_without_metrics_shows_no_unfinished_progress() -> None:
    assert step(reporting(successful(None))).step == SetProgress(None)
    assert step(successful({"steps": "many", "finalLoss": "1"})).step is None


def test_a_failed_training_shows_how_far_it_got_and_no_time_to_the_end() -> None:
    view, _ = fail(reporting(begun()), 72)
    assert final(view) == ("62/80 (77%)", "0.2117", None)


def test_the_host_memory_of_another_attempt_is_no_evidence() -> None:
    view = retried(fail(begun(), 75)[0], Snapshot(), after=10)
    killed: dict[str, Any] = {"terminated_reason": "OOMKilled"}
    _, other = fail(reporting(view), 137, after=20, **killed)
    _, own = fail(reporting(view, 2), 137, after=20, **killed)
    assert "last report" not in (other.status.message or "")
    assert "last report of rank 0: 1.0 GiB" in (own.status.message or "")


def test_a_message_about_resuming_never_contradicts_the_trainers() -> None:
    """The trainer could not report its newest checkpoint."""
    said = result(75, message="Saved: the next attempt resumes from step 3879 (jobs/demo/checkpoints/1-x/3879)")
    view = saved(begun(), 2100)
    view, planned = fail(view, 75, terminated_message=said.model_dump_json(by_alias=True))
    message = planned.status.message or ""
    assert "resumes from step 3879" in message
    assert "last reported: step 2100" in message
    assert message.count("resumes from") == 1
    view = retried(view, Snapshot(), after=10)
    seen = reporting(view, 2, startStep=3879)
    message = step(seen, pods(attempt=2), after=20).status.message or ""
    assert message == "Training: attempt 2 resumes from checkpoint step 3879."


def wiped(attempt: int) -> tuple[JobView, Snapshot]:
    """Somebody emptied the status in mid-run, and the pod has reported since."""
    first = replace(child_job(kind="prepare", complete=True), created=NOW - timedelta(hours=3))
    train = replace(child_job(attempt), created=NOW - timedelta(hours=1))
    progress = reporting(job(), attempt, step=5042, totalSteps=9000, startStep=3879).status
    return job(progress), Snapshot((first, train), (running(attempt),))


def test_a_wiped_status_knows_when_the_job_began_and_where_the_attempt_resumed() -> None:
    view, snapshot = wiped(4)
    view = with_status(view, step(view, snapshot))
    assert view.status["startTime"] == "2026-01-31T09:00:00Z"
    view = with_status(view, step(view, snapshot))
    assert view.status["message"] == "Training: attempt 4 resumes from checkpoint step 3879."
    silent = replace(view, status={name: value for name, value in view.status.items() if name != "progress"})
    assert "beginning" not in str(step(silent, snapshot).status.message)
    ended_now = Snapshot((child_job(4, failed_reason="x"),), (ended(75, 4),))
    view = with_status(view, step(view, ended_now, after=100))
    view = retried(view, Snapshot(), after=1000)
    assert view.status["startTime"] == "2026-01-31T09:00:00Z"


def left(*present: PodView) -> Plan:
    """An attempt on two nodes has run, and these pods are left."""
    view, both = begun(resources=TWO_NODES), (running(), running(rank=1))
    view = with_status(view, step(view, Snapshot((child_job(),), both)))
    return step(view, Snapshot((child_job(),), present))


def test_a_condition_says_that_all_pods_run_only_if_they_do() -> None:
    both = (running(), running(rank=1))
    assert text(left(*both).status, "Running") == "All pods run."
    for some in (both[:1], both[1:], ()):
        assert "All pods run" not in text(left(*some).status, "Running")
    assert left().status.phase == "Starting"
    waits = replace(running(rank=1), running=False, phase="Pending", waiting_reason="ContainerCreating")
    assert left(both[0], waits).status.phase == "Starting"


def test_a_child_job_that_somebody_deletes_is_told() -> None:
    view = going(begun())
    planned = step(view, Snapshot((child_job(deleting=True),)))
    assert (planned.status.phase, planned.status.reason) == ("Starting", "Ending")
    assert "Somebody deleted Job demo-0a1b2-1" in (planned.status.message or "")


def test_a_child_job_that_lost_its_labels_is_followed_more_slowly_and_told() -> None:
    view = going(begun())
    stripped = Snapshot((child_job(watched=False),), (running(),))
    planned = step(view, stripped)
    assert planned.status.phase == "Running"
    message = planned.status.message or ""
    assert "kubectl label job demo-0a1b2-1 -n team finetune-operator.io/managed=true" in message
    assert wait(planned) == 60
    assert "deleted" not in message
    assert not isinstance(planned.step, Create | Delete)
    done = step(with_status(view, planned), Snapshot((child_job(watched=False, complete=True),), (ended(0),)))
    assert done.status.phase == "Succeeded"
