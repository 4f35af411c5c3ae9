"""Pods that others change: the trainer's container decides, and other containers neither hide nor prolong its end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.plan import Delete
from finetune_operator.plan.containers import OTHERS_SECONDS, changed_requests, equal
from finetune_operator.plan.reports import SILENT_SECONDS
from finetune_operator.plan.startup import diagnose, unexplained
from finetune_operator.views.job import JobView
from finetune_operator.views.pod import PodView
from finetune_operator.views.snapshot import Read, Snapshot

from tests.unit.operator.make import (
    TWO_NODES,
    artifact,
    begun,
    child_job,
    condition,
    ended,
    job,
    kept,
    needs,
    pod,
    prepared,
    proxy,
    result,
    running,
    step,
    wait,
    with_status,
)

OVER = OTHERS_SECONDS + 1
MADE = result(0, artifact=artifact("demo")).model_dump_json(by_alias=True)


def is_running(nodes: int = 1, **spec: Any) -> JobView:
    view = begun(**({"resources": TWO_NODES} if nodes == 2 else {}), **spec)
    pods = tuple(running(rank=rank) for rank in range(nodes))
    return with_status(view, step(view, Snapshot((child_job(),), pods)))


def test_a_job_that_other_containers_keep_has_succeeded_and_lets_its_gpu_go() -> None:
    """The status is written first. Then the child job is deleted, also by an operator that has just started."""
    view = is_running()
    snapshot = Snapshot((child_job(),), (kept(0, terminated_message=MADE),))
    waiting = step(view, snapshot, after=1)
    assert (waiting.status.phase, waiting.step, wait(waiting, after=1)) == ("Running", None, OTHERS_SECONDS - 1)
    done = step(view, snapshot, after=OVER)
    assert (done.status.phase, done.status.reason, done.step) == ("Succeeded", "Completed", None)
    assert done.status.artifact is not None
    assert done.status.artifact.digest == "sha256:demo"
    [attempt] = done.status.attempts or []
    assert (attempt.state, attempt.reason, attempt.exit_code, attempt.failures) == ("Ended", "Completed", 0, 0)
    assert "other containers did not end within 30 s: proxy. The job does not ask for them." in (attempt.message or "")
    view = with_status(view, done)
    assert step(view, snapshot, after=OVER).step == Delete(child_job())
    assert step(view, Snapshot(), after=OVER).step is None
    assert step(view, Snapshot(), after=OVER).status.phase == "Succeeded"


@pytest.mark.parametrize(
    ("code", "phase", "reason", "failures"),
    [(65, "Failed", "InvalidData", 0), (70, "Starting", "RetryBackoff", 1), (75, "Starting", "RetryBackoff", 0)],
)
def test_the_end_of_the_trainer_decides_what_follows(code: int, phase: str, reason: str, failures: int) -> None:
    message = json.dumps({"kind": "train", "attempt": 1, "exitCode": code, "reason": reason, "message": "its words"})
    snapshot = Snapshot((child_job(),), (kept(code, terminated_message=message),))
    over = step(is_running(), snapshot, after=OVER)
    assert (over.status.phase, over.status.reason) == (phase, reason)
    assert "its words" in (over.status.message or "")
    [attempt] = over.status.attempts or []
    assert (attempt.exit_code, attempt.failures) == (code, failures)


def test_no_attempt_begins_before_the_last_one_has_let_go() -> None:
    view, snapshot = is_running(), Snapshot((child_job(),), (kept(70),))
    view = with_status(view, step(view, snapshot, after=OVER))
    for after in (OVER, OVER + 100):
        assert step(view, snapshot, after=after).step == Delete(child_job())
    leaving = Snapshot((child_job(deleting=True),), (kept(70, deleting=True),))
    waiting = step(view, leaving, after=OVER + 100)
    assert (waiting.status.attempt, waiting.status.reason, waiting.step) == (1, "Ending", None)
    assert step(view, Snapshot(), after=OVER + 100).status.attempt == 2


def test_training_does_not_begin_before_the_prepare_pod_has_let_go() -> None:
    view = with_status(job(), step(job()))
    child = child_job(kind="prepare")
    snapshot = Snapshot((child,), (kept(0, kind="prepare"),))
    ready = step(view, snapshot, after=OVER)
    assert (condition(ready.status, "Prepared")[0], ready.status.phase) == ("True", "Starting")
    view = with_status(view, ready)
    assert (view.status["phase"], view.status.get("attempt")) == ("Starting", None)
    assert step(view, snapshot, after=OVER).step == Delete(child)
    assert step(view, Snapshot(), after=OVER).status.attempt == 1


def test_the_end_is_confirmed_by_live_reads() -> None:
    view, snapshot = is_running(), Snapshot((child_job(),), (kept(0),))
    assert needs(view, snapshot, after=1)[0] == []
    assert needs(view, snapshot, after=OVER)[0] == [Read.JOB, Read.PODS]


NO_OTHERS = {
    "no other container": (replace(kept(0), others=()),),
    "a sidecar container": (replace(kept(0), others=(proxy(kind="sidecar container"),)),),
    "it has ended": (replace(kept(0), others=(proxy(running=False, terminated=True, exit_code=0),)),),
    "the pod is deleted": (kept(0, deleting=True),),
    "the trainer runs": (replace(running(), others=(proxy(),)),),
}


@pytest.mark.parametrize("why", NO_OTHERS)
def test_an_attempt_that_nothing_else_keeps_is_left_to_the_cluster(why: str) -> None:
    planned = step(is_running(), Snapshot((child_job(),), NO_OTHERS[why]), after=9999)
    assert (planned.status.phase, planned.step, wait(planned, after=9999)) == ("Running", None, None)


@pytest.mark.parametrize(
    ("pods", "due"),
    [
        ((kept(0), running(rank=1)), SILENT_SECONDS),
        ((kept(0), kept(0, rank=1, after=7)), OTHERS_SECONDS + 7),
        ((ended(0), kept(0, rank=1, after=7)), OTHERS_SECONDS + 7),
        ((running(), kept(70, rank=1, after=7)), OTHERS_SECONDS + 7),
        ((kept(0, after=3), kept(70, rank=1, after=7)), OTHERS_SECONDS + 7),
        ((kept(70, after=3), kept(70, rank=1, after=7)), OTHERS_SECONDS + 3),
        ((kept(0),), SILENT_SECONDS),
    ],
    ids=[
        "one trains",
        "both are done",
        "one is gone",
        "one failed",
        "one failed, one is done",
        "both",
        "a pod is missing",
    ],
)
def test_with_several_pods_all_are_done_or_one_has_failed(pods: tuple[PodView, ...], due: float) -> None:
    """Until then, the plan looks again only when reports are missed."""
    planned = step(is_running(2), Snapshot((child_job(),), pods), after=8)
    assert wait(planned, after=8) == due - 8


def test_a_failed_rank_is_judged_although_its_peers_still_run() -> None:
    planned = step(is_running(2), Snapshot((child_job(),), (running(), kept(70, rank=1))), after=OVER)
    [attempt] = planned.status.attempts or []
    assert (attempt.reason, attempt.exit_code) == ("InternalError", 70)
    assert (attempt.message or "").startswith("Node rank 1")


def test_a_trainer_that_ended_at_an_unknown_time_does_not_hold_its_gpu() -> None:
    assert step(is_running(), Snapshot((child_job(),), (kept(0, ended=None),)), after=OVER).status.phase == "Succeeded"


def test_a_trainer_that_ends_before_the_start_deadline_has_started() -> None:
    view = begun(startDeadlineSeconds=10)
    snapshot = Snapshot((child_job(),), (kept(0),))
    waiting = step(view, snapshot, after=20)
    assert waiting.status.reason == "Ending"
    assert "Waiting for the attempt's other containers (proxy) to end" in (waiting.status.message or "")
    assert step(with_status(view, waiting), snapshot, after=OVER).status.phase == "Succeeded"


def test_a_wiped_status_is_found_again_with_the_end_of_the_trainer() -> None:
    snapshot = Snapshot((child_job(),), (kept(0),))
    view = with_status(job(), step(job(), snapshot, after=OVER))
    assert step(view, snapshot, after=OVER).status.phase == "Succeeded"


CRASHED = proxy(running=False, terminated=True, exit_code=3, terminated_reason="Error")


@pytest.mark.parametrize("gone", [True, False])
def test_a_crash_of_another_container_is_no_failure_of_the_trainer(gone: bool) -> None:
    """Its pod has the phase Failed, and its Job has Failed."""
    pods = (ended(0, phase="Failed", others=(CRASHED,)),)
    view = is_running(backoffLimit=0)
    view = replace(view, status={**view.status, "result": result(0).to_dict()})
    child = child_job(failed_reason="BackoffLimitExceeded")
    assert step(view, Snapshot((child,), () if gone else pods)).status.phase == "Succeeded"
    assert step(view, Snapshot((child_job(),), (replace(running(), others=(CRASHED,)),))).status.phase == "Running"


def test_ranks_that_end_because_a_container_crashed_beside_another_are_not_to_blame() -> None:
    """The Job controller deletes them as soon as one pod has failed."""
    crashed = ended(0, rank=1, phase="Failed", others=(CRASHED,))
    for code in (70, 75):
        over = Snapshot((child_job(failed_reason="BackoffLimitExceeded"),), (ended(code, deleting=True), crashed))
        planned = step(is_running(2, backoffLimit=0), over)
        assert planned.status.reason == "RetryBackoff"
        [attempt] = planned.status.attempts or []
        assert (attempt.reason, attempt.failures) == ("Disrupted", 0)
        assert f"Node rank 1 (pod {crashed.name}): container proxy failed with exit code 3." in (attempt.message or "")


def test_a_container_that_ends_with_its_deleted_pod_is_no_cause() -> None:
    leaving = ended(0, rank=1, phase="Failed", deleting=True, others=(CRASHED,))
    over = Snapshot((child_job(failed_reason="BackoffLimitExceeded"),), (ended(70), leaving))
    [attempt] = step(is_running(2), over).status.attempts or []
    assert (attempt.reason, attempt.failures) == ("InternalError", 1)


INIT = proxy(name="init-net", kind="init container", running=False, started=False)


def test_an_init_container_that_fails_is_named() -> None:
    others = (replace(INIT, terminated=True, exit_code=1, terminated_reason="OOMKilled"),)
    failed = pod(phase="Failed", node="node-1", others=others, waiting_reason="PodInitializing")
    over = Snapshot((child_job(failed_reason="BackoffLimitExceeded"),), (failed,))
    planned = step(begun(backoffLimit=0), over)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "BackoffLimitExceeded")
    for words in ("OtherContainerFailed", "init container init-net failed with exit code 1 (OOMKilled)", "webhook"):
        assert words in (planned.status.message or "")
    assert f"kubectl logs {failed.name} -c init-net -n team" in (planned.status.message or "")


@pytest.mark.parametrize(
    ("other", "reason", "words"),
    [
        (
            replace(INIT, waiting_reason="ImagePullBackOff", waiting_message="no tag"),
            "ImagePullFailed",
            "no tag. A webh",
        ),
        (replace(INIT, waiting_reason="CreateContainerConfigError"), "ConfigMissing", "Ask its owner (image registry"),
        (replace(INIT, running=True), "Starting", "init container init-net runs. The trainer waits for it."),
        (replace(INIT, kind="sidecar container", exit_code=2), "OtherContainerFailed", "exit code 2 and is restarted"),
        (replace(INIT, kind="sidecar container", exit_code=2, running=True), "OtherContainerFailed", "exit code 2"),
        (replace(INIT, terminated=True, exit_code=0), "Starting", "are starting"),
        (replace(INIT, kind="sidecar container", running=True, started=True), "Starting", "are starting"),
        (proxy(running=False, waiting_reason="ImagePullBackOff"), "Starting", "are starting"),
    ],
)
def test_what_the_trainer_waits_for_is_told(other: Any, reason: str, words: str) -> None:
    waiting = pod(waiting_reason="PodInitializing", node="node-1", others=(other,))
    diagnosis = diagnose(child_job(), [waiting], [], 1)
    assert (diagnosis.running, diagnosis.reason) == (False, reason)
    assert words in diagnosis.message
    assert (unexplained(child_job(), [waiting], 1) == set()) == ("are starting" not in words)


def test_other_containers_that_wait_do_not_keep_a_trainer_from_running() -> None:
    beside = replace(running(), phase="Pending", others=(proxy(running=False, waiting_reason="ErrImagePull"),))
    assert diagnose(child_job(), [beside], [], 1).running


def test_an_unschedulable_pod_tells_what_the_cluster_changed() -> None:
    asked = child_job(requests={"cpu": "4", "memory": "16Gi"})
    changed = pod(
        unschedulable="0/3 nodes: 3 Insufficient cpu",
        requests={"cpu": "32", "memory": "16384Mi"},
        others=(proxy(requests={"cpu": "100m"}),),
    )
    message = diagnose(asked, [changed], [], 1).message
    assert "the trainer requests cpu 32 instead of 4; container proxy requests cpu 100m." in message
    assert "memory" not in message.split("Check spec.resources")[0]
    assert not changed_requests(pod(requests=asked.requests), asked)


def test_a_memory_limit_that_the_cluster_changed_is_told() -> None:
    over = child_job(failed_reason="PodFailurePolicy", memory_limit="16Gi")
    killed = ended(137, terminated_reason="OOMKilled", memory_limit="4Gi")
    [attempt] = step(is_running(), Snapshot((over,), (killed,))).status.attempts or []
    assert "its limit of 4Gi and was killed. The job asks for 16Gi (spec.resources.memory)" in (attempt.message or "")
    same = replace(killed, memory_limit="16384Mi")
    [attempt] = step(is_running(), Snapshot((over,), (same,))).status.attempts or []
    assert "Raise spec.resources.memory" in (attempt.message or "")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [("1", "1000m", True), ("16Gi", "16384Mi", True), ("1", "2", False), ("1e3", "1k", True), ("x", "x", True)],
)
def test_quantities_are_compared_by_their_amount(first: str, second: str, same: bool) -> None:
    assert equal(first, second) == same


def test_a_job_that_never_began_deletes_no_child_of_a_wiped_status() -> None:
    """The newest child job still counts, whatever keeps it."""
    view = with_status(prepared(), step(prepared(), Snapshot((child_job(3),), (running(3),))))
    assert (view.status["attempt"], step(view, Snapshot((child_job(3),), (running(3),))).step) == (3, None)
