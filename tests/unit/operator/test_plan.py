"""Training, from prepared data to its end, as a series of plans: each from the status that the one before left."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_api.status import FineTuneJobStatus
from finetune_operator.observed import JobView, Observed, least_gpu_memory
from finetune_operator.plan import Create, Delete, Plan

from tests.unit.operator.make import SETTINGS, batch, ended, job, pod, prepared, result, running, step, with_status


def begun(**spec: Any) -> JobView:
    """A job whose first attempt is in the status, but not made yet."""
    view = prepared(**spec)
    return with_status(view, step(view))


def condition(status: FineTuneJobStatus, kind: str) -> tuple[str, str]:
    found = next(c for c in status.conditions or [] if c.type == kind)
    return found.status, found.reason


def over(planned: Plan) -> bool:
    """Whether nothing remains to be done."""
    return planned.step is None and planned.look_again is None


def test_the_attempt_is_in_the_status_before_its_job_is_made() -> None:
    first = step(prepared())
    assert first.step is None
    assert first.status.attempt == 1
    assert first.status.resolved is not None
    assert first.status.resolved.image == "registry.example/finetune-trainer:1"
    second = step(with_status(job(), first))
    assert isinstance(second.step, Create)
    assert [child["kind"] for child in second.step.children] == ["ServiceAccount", "RoleBinding", "Job"]
    assert second.step.children[-1]["metadata"]["name"] == "demo-0a1b2-1"


def test_plans_are_stable() -> None:
    """The same state, looked at later, changes nothing: an idle operator does not write."""
    view = begun()
    for observed in (
        Observed((batch(),)),
        Observed((batch(),), (pod(unschedulable="0/3 nodes are available"),)),
        Observed((batch(),), (running(),)),
    ):
        first = step(view, observed)
        again = step(with_status(view, first), observed, after=60)
        assert again.status == first.status
        assert again.step is None


def test_running_when_every_pod_runs() -> None:
    planned = step(begun(), Observed((batch(),), (running(),)))
    assert planned.status.phase == "Running"
    assert condition(planned.status, "Running") == ("True", "Running")
    assert planned.status.attempts is not None
    assert planned.status.attempts[-1].state == "Running"


def test_success_copies_what_the_trainer_reports() -> None:
    artifact = {"uri": "pvc://kept/jobs/demo/artifact", "kind": "adapter", "digest": "sha256:1", "sizeBytes": 5}
    said = result(0, message="done", artifact=artifact, metrics={"loss": "0.5"}).model_dump_json(by_alias=True)
    planned = step(begun(), Observed((batch(complete=True),), (ended(0, terminated_message=said),)))
    status = planned.status
    assert (status.phase, condition(status, "Succeeded")) == ("Succeeded", ("True", "Completed"))
    assert status.artifact is not None
    assert status.artifact.uri == artifact["uri"]
    assert status.metrics == {"loss": "0.5"}
    assert status.completion_time == "2026-01-31T12:00:00Z"
    assert over(step(with_status(job(), planned), Observed((batch(complete=True),)), after=1e6))


def test_a_finished_job_whose_children_are_gone_stays_finished() -> None:
    done = with_status(job(), step(begun(), Observed((batch(complete=True),), (ended(0),))))
    planned = step(done, Observed())
    assert over(planned)
    assert planned.status.phase == "Succeeded"


@pytest.mark.parametrize("code", [64, 65, 66, 77, 72, 73, 74])
def test_what_another_attempt_cannot_cure_fails_at_once_in_the_trainers_words(code: int) -> None:
    said = result(code, message="train.jsonl:7: output is empty").model_dump_json(by_alias=True)
    planned = step(begun(), Observed((batch(failed_reason="x"),), (ended(code, terminated_message=said),)))
    assert planned.status.phase == "Failed"
    assert planned.status.message == "train.jsonl:7: output is empty"
    assert condition(planned.status, "Failed")[0] == "True"
    assert over(step(with_status(job(), planned), Observed((batch(failed_reason="x"),)), after=1e6))


def fail(view: JobView, code: int, *, after: float = 0, **pod_changes: Any) -> tuple[JobView, Plan]:
    """The current attempt runs and ends with a code; the job afterwards."""
    number = view.status["attempt"]
    observed = Observed((batch(number, failed_reason="PodFailurePolicy"),), (ended(code, number, **pod_changes),))
    planned = step(view, observed, after=after)
    return with_status(view, planned), planned


def retried(view: JobView, observed: Observed, *, after: float) -> JobView:
    """The job once its next attempt has begun."""
    planned = step(view, observed, after=after)
    assert planned.status.attempt == view.status["attempt"] + 1, "it should begin its next attempt"
    return with_status(view, planned)


def test_retries_count_and_back_off_until_the_limit() -> None:
    view = begun(backoffLimit=2)
    now = 0.0
    for number, delay in ((1, 10), (2, 20)):
        view, planned = fail(view, 70, after=now)
        assert (planned.status.phase, planned.status.reason) == ("Starting", "RetryBackoff")
        assert planned.look_again == delay
        assert step(view, after=now + delay - 1).status.attempt == number
        now += delay
        view = retried(view, Observed((batch(number, failed_reason="x"),)), after=now)
    view, planned = fail(view, 70, after=now)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "BackoffLimitExceeded")
    assert "3 attempts failed" in (planned.status.message or "")


def test_disruptions_do_not_count() -> None:
    view = begun(backoffLimit=0)
    view, planned = fail(view, 137, disruption="PreemptionByScheduler: preempting")
    assert planned.status.reason == "RetryBackoff"
    view = retried(view, Observed(), after=10)
    view, planned = fail(view, 75, after=10)
    assert planned.status.reason == "RetryBackoff"


def disrupted_three_times(steps: list[int | None]) -> Plan:
    """Three disruptions; a newer checkpoint was saved at these steps, or none."""
    view, now = begun(), 0.0
    for number, saved in enumerate(steps, start=1):
        if saved is not None:
            checkpoint = {"attempt": number, "step": saved, "path": "p", "time": "2026-01-31T12:00:00Z"}
            view = replace(view, status={**view.status, "checkpoint": checkpoint})
        view, planned = fail(view, 75, after=now)
        if number < len(steps):
            now += 1000
            view = retried(view, Observed(), after=now)
    return planned


def test_three_disruptions_without_a_newer_checkpoint_are_the_end() -> None:
    assert disrupted_three_times([None, None, None]).status.reason == "NoProgress"
    assert disrupted_three_times([5, 5, 5]).status.reason == "RetryBackoff"
    assert disrupted_three_times([5, 10, 15]).status.reason == "RetryBackoff"
    assert disrupted_three_times([5, 5, 5, 5]).status.reason == "NoProgress"


def test_gpu_out_of_memory_halves_the_micro_batch_down_to_one() -> None:
    view = begun(training={"epochs": 1, "globalBatchSize": 12, "microBatchSize": 6}, backoffLimit=0)
    sizes = []
    now = 0.0
    for _ in range(5):
        view, planned = fail(view, 71, after=now)
        if planned.status.phase == "Failed":
            break
        now += 1000
        view = retried(view, Observed(), after=now)
        planned = step(view, Observed())
        assert isinstance(planned.step, Create)
        annotations = planned.step.children[-1]["spec"]["template"]["metadata"]["annotations"]
        sizes.append(json.loads(annotations["finetune-operator.io/attempt-facts"])["microBatchSize"])
    assert sizes == [3, 1]
    assert planned.status.reason == "GPUOutOfMemory"


def oom(phase: str) -> str:
    full = {"phase": phase, "rank": 0, "microBatchSize": 4}
    return result(71, outOfMemory=full).model_dump_json(by_alias=True)


def test_a_gpu_out_of_memory_in_evaluation_goes_on_as_it_was_and_counts() -> None:
    view, now = begun(training={"epochs": 1, "microBatchSize": 4}, backoffLimit=1), 0.0
    view, planned = fail(view, 71, after=now, terminated_message=oom("evaluate"))
    assert planned.status.reason == "RetryBackoff"
    assert "when evaluating" in (planned.status.message or "")
    view = retried(view, Observed(), after=1000)
    assert view.status["attempts"][-1].get("microBatchSize") is None
    view, planned = fail(view, 71, after=1000, terminated_message=oom("evaluate"))
    assert (planned.status.phase, planned.status.reason) == ("Failed", "GPUOutOfMemory")
    assert "spec.backoffLimit is 1" in (planned.status.message or "")


def test_after_training_ran_out_of_memory_the_smaller_micro_batch_stays() -> None:
    view = begun(training={"epochs": 1, "globalBatchSize": 8, "microBatchSize": 4})
    view, planned = fail(view, 71, terminated_message=oom("train"))
    assert "with a micro-batch of 2." in (planned.status.message or "")
    view = retried(view, Observed(), after=1000)
    view, _ = fail(view, 71, after=1000, terminated_message=oom("save"))
    view = retried(view, Observed(), after=2000)
    assert [entry.get("microBatchSize") for entry in view.status["attempts"]] == [None, 2, 2]


def test_an_attempt_that_falls_back_is_told_and_measured_from_where_it_goes_on() -> None:
    """The checkpoint of step 200 turned out to be broken. What is saved at 150 is progress then."""
    view, _ = fail(saved(begun(), 200), 75)
    view = retried(view, Observed(), after=10)
    under_way = Observed((batch(2),), (running(2),))
    view = with_status(view, step(saved(view, 100), under_way, after=20))
    assert view.status["message"] == "Training: attempt 2 goes on from checkpoint step 100."
    view = with_status(view, step(saved(view, 150, attempt=2), under_way, after=30))
    assert view.status["message"] == "Training: attempt 2 goes on from checkpoint step 100."
    _, planned = fail(view, 75, after=40)
    assert planned.status.attempts is not None
    assert planned.status.attempts[-1].stalled == 0
    assert "Attempt 3 goes on from checkpoint step 150" in (planned.status.message or "")

    _, planned = fail(saved(view, 100), 75, after=40)
    assert planned.status.attempts is not None
    assert planned.status.attempts[-1].stalled == 1, "it saved nothing"


def saved(view: JobView, at: int, **fields: Any) -> JobView:
    checkpoint = {"attempt": 1, "step": at, "path": "p", "time": "2026-01-31T12:00:00Z", **fields}
    return replace(view, status={**view.status, "checkpoint": checkpoint})


def test_where_the_next_attempt_goes_on_is_said_before_it_begins_and_while_it_runs() -> None:
    view, planned = fail(saved(begun(), 40), 75)
    message = planned.status.message or ""
    assert "Attempt 2 goes on from checkpoint step 40; it begins at 2026-01-31T12:00:10Z" in message
    view = retried(view, Observed(), after=10)
    planned = step(saved(view, 60, attempt=2), Observed((batch(2),), (running(2),)), after=20)
    assert planned.status.message == "Training: attempt 2 goes on from checkpoint step 40."
    assert step(begun(), Observed((batch(),), (running(),))).status.message == "Training."
    assert "Attempt 2 begins from the start" in (fail(begun(), 75)[1].status.message or "")


@pytest.mark.parametrize(
    ("asked", "took", "given"),
    [(120, None, 120), (120, 10, 120), (120, 100, 230), (20, 7200, 3600), (7200, 9000, 7200)],
)
def test_pods_get_the_time_to_save_that_saving_has_taken(asked: int, took: int | None, given: int) -> None:
    view = prepared(resources={"terminationGracePeriodSeconds": asked})
    view = saved(with_status(view, step(view)), 40, **({} if took is None else {"seconds": took}))
    planned = step(view)
    assert isinstance(planned.step, Create)
    template = planned.step.children[-1]["spec"]["template"]
    assert template["spec"]["terminationGracePeriodSeconds"] == given
    facts = json.loads(template["metadata"]["annotations"]["finetune-operator.io/attempt-facts"])
    assert facts["gracePeriodSeconds"] == given


TWO_NODES = {"nodes": 2}


def test_a_disruption_is_noted_before_the_pod_is_gone() -> None:
    """What its peer says of that is not the job's fault, whatever the Job remembers."""
    view = begun(resources=TWO_NODES, backoffLimit=0)
    view = with_status(view, step(view, Observed((batch(),), (running(), running(rank=1)))))
    drained = replace(running(rank=1), disruption="EvictionByEvictionAPI: evicting")
    view = with_status(view, noted := step(view, Observed((batch(),), (running(), drained))))
    assert noted.status.phase == "Running"
    assert view.status["attempts"][-1]["reason"] == "Disrupted"
    assert step(view, Observed((batch(),), (running(),))).status == noted.status
    said = "Container trainer for pod team/p failed with exit code 70 matching FailJob rule at index 5"
    over = batch(failed_reason="PodFailurePolicy", failed_message=said)
    planned = step(view, Observed((over,), (ended(70),)))
    assert planned.status.reason == "RetryBackoff"
    assert "Node rank 1 (pod demo-0a1b2-1-1-abcde): EvictionByEvictionAPI" in (planned.status.message or "")
    assert planned.status.attempts is not None
    assert planned.status.attempts[-1].failures == 0


def test_a_disruption_that_did_not_come_is_no_excuse_for_later() -> None:
    view = begun(resources=TWO_NODES)
    threatened = replace(running(rank=1), disruption="PreemptionByScheduler: preempting")
    view = with_status(view, step(view, Observed((batch(),), (running(), threatened))))
    planned = step(view, Observed((batch(),), (running(), running(rank=1))))
    assert planned.status.attempts is not None
    assert planned.status.attempts[-1].reason is None


def test_jobs_that_starved_each_other_do_not_begin_again_together() -> None:
    waits = set()
    for uid in ("0a1b2c3d", "ffeeddcc"):
        view = replace(prepared(resources=TWO_NODES, startDeadlineSeconds=60), uid=uid)
        view = with_status(view, step(view))
        mine = replace(batch(), owner_uid=uid, name=view.status["attempts"][0]["job"])
        stuck = Observed((mine,), (running(), pod(rank=1, unschedulable="0/2 nodes")))
        view = with_status(view, step(view, stuck, after=61))
        assert isinstance(step(view, stuck, after=61).step, Delete)
        planned = step(view, Observed(), after=70)
        assert planned.status.reason == "RetryBackoff"
        assert "PartlyScheduled" in (planned.status.message or "")
        waits.add(planned.look_again)
    assert len(waits) == 2
    assert all(wait is not None and 10 <= wait <= 20 for wait in waits)


def test_a_workspace_of_one_node_keeps_a_job_of_two_waiting_until_it_is_another() -> None:
    view = job(resources=TWO_NODES)
    planned = step(view, Observed(workspace_modes=("ReadWriteOnce",)))
    assert (planned.status.phase, planned.status.reason) == ("Pending", "WorkspaceNotShareable")
    assert condition(planned.status, "Accepted") == ("False", "WorkspaceNotShareable")
    assert "claim work can be mounted by the pods of one node only (ReadWriteOnce)" in (planned.status.message or "")
    assert (planned.status.prepare_attempt, planned.step, planned.look_again) == (None, None, 30)
    view = with_status(view, planned)
    again = step(view, Observed(workspace_modes=("ReadWriteOnce",)), after=60)
    assert again.status == planned.status
    for modes in (None, ("ReadWriteMany",)):
        planned = step(view, Observed(workspace_modes=modes), after=90)
        assert condition(planned.status, "Accepted") == ("True", "Accepted")
        assert planned.status.prepare_attempt == 1
    assert step(job(), Observed(workspace_modes=("ReadWriteOnce",))).status.prepare_attempt == 1


def test_what_nodes_say_of_their_gpus_reaches_preparing_unless_the_job_says_it() -> None:
    def told(**spec: Any) -> int | None:
        view = job(**spec)
        planned = step(with_status(view, step(view)), Observed(gpu_memory_bytes=40 * 2**30))
        assert isinstance(planned.step, Create)
        note = planned.step.children[-1]["spec"]["template"]["metadata"]["annotations"]
        memory: int | None = json.loads(note["finetune-operator.io/resolved-job"])["runtime"].get("gpuMemoryBytes")
        return memory

    assert told() == 40 * 2**30
    assert told(resources={"gpuMemory": "80Gi"}) == 80 * 2**30


def test_the_smallest_gpu_among_the_nodes_counts() -> None:
    assert least_gpu_memory(["81559", "15360", "", "lots"]) == 15360 * 2**20
    assert least_gpu_memory([]) is None


def test_the_next_attempt_waits_for_every_pod_of_the_last() -> None:
    view = begun()
    leaving = replace(running(), deleting=True)
    planned = step(view, Observed((batch(failed_reason="x"),), (leaving,)))
    assert planned.status.attempts is not None
    assert planned.status.attempts[-1].state != "Ended"


def test_attempts_are_numbered_beyond_whatever_exists() -> None:
    view, _ = fail(begun(), 70)
    planned = step(view, Observed((batch(1, failed_reason="x"), batch(4, failed_reason="x"))), after=10)
    assert planned.status.attempt == 5


def test_a_wiped_status_finds_the_running_job_again() -> None:
    planned = step(job(), Observed((batch(3),), (running(3),)))
    assert planned.status.attempt == 3
    assert planned.step is None


def test_a_job_deleted_while_starting_is_made_again_and_while_running_counts() -> None:
    view = begun(backoffLimit=0)
    assert isinstance(step(view, Observed()).step, Create)
    view = with_status(view, step(view, Observed((batch(),), (running(),))))
    planned = step(view, Observed())
    assert (planned.status.phase, planned.status.reason) == ("Failed", "BackoffLimitExceeded")
    assert "deleted by somebody" in (planned.status.message or "")


def test_the_start_deadline_is_written_down_before_the_job_is_deleted() -> None:
    view = begun(startDeadlineSeconds=60, backoffLimit=0)
    stuck = Observed((batch(),), (pod(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),))
    assert step(view, stuck, after=59).status.reason == "Unschedulable"
    condemned = step(view, stuck, after=61)
    assert condemned.step is None
    view = with_status(view, condemned)
    assert isinstance(step(view, stuck, after=61).step, Delete)
    planned = step(view, Observed(), after=70)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "StartDeadlineExceeded")
    assert "Insufficient nvidia.com/gpu" in (planned.status.message or "")


def test_objects_that_the_cluster_refuses_are_named_and_given_up_at_the_deadline() -> None:
    view = begun(startDeadlineSeconds=60, backoffLimit=0)
    refused = Observed(refused="The cluster refuses what the attempt needs: 403: exceeded quota: count/jobs.batch.")
    planned = step(view, refused, after=5)
    assert (planned.status.reason, planned.step) == ("PodsRejected", None)
    assert "count/jobs.batch" in (planned.status.message or "")
    assert isinstance(step(with_status(view, planned), Observed(), after=10).step, Create)
    view = with_status(view, step(view, refused, after=61))
    planned = step(view, Observed(), after=62)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "StartDeadlineExceeded")
    assert "count/jobs.batch" in (planned.status.message or "")


def test_what_cannot_be_run_is_refused_with_what_to_do() -> None:
    view = job(training={"epochs": 1, "globalBatchSize": 6}, resources={"gpusPerNode": 4})
    planned = step(view)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "InvalidSpec")
    assert "multiple of 4" in (planned.status.message or "")
    assert planned.step is None


def test_a_leftover_job_of_a_finished_one_is_ended() -> None:
    done = with_status(job(), step(begun(), Observed((batch(complete=True),), (ended(0),))))
    assert isinstance(step(done, Observed((batch(2),))).step, Delete)


def test_image_and_digest_stay_as_they_were_accepted() -> None:
    view, _ = fail(begun(), 70)
    newer = SETTINGS.model_copy(update={"trainer_image": "registry.example/finetune-trainer:2"})
    view = with_status(view, step(view, after=10, settings=newer))
    planned = step(view, after=10, settings=newer)
    assert isinstance(planned.step, Create)
    container = planned.step.children[-1]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example/finetune-trainer:1"


def test_the_attempts_shown_are_bounded_and_the_counts_are_not() -> None:
    view, now = begun(backoffLimit=100), 0.0
    for _ in range(30):
        view, _ = fail(view, 70, after=now)
        now += 1000
        view = retried(view, Observed(), after=now)
    assert len(view.status["attempts"]) == 20
    assert view.status["attempts"][-1]["failures"] == 30
