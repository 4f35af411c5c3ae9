"""What follows when an attempt has ended: the backoff, the counts, and the limits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from finetune_operator.plan import Create, Delete, Plan
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    TWO_NODES,
    begun,
    child_job,
    fail,
    pod,
    prepared,
    result,
    retried,
    running,
    step,
    wait,
    with_status,
)


def test_retries_count_and_back_off_until_the_limit() -> None:
    view = begun(backoffLimit=2)
    now = 0.0
    for number, delay in ((1, 10), (2, 20)):
        view, planned = fail(view, 70, after=now)
        assert (planned.status.phase, planned.status.reason) == ("Starting", "RetryBackoff")
        assert wait(planned, after=now) == delay
        assert step(view, after=now + delay - 1).status.attempt == number
        now += delay
        view = retried(view, Snapshot((child_job(number, failed_reason="x"),)), after=now)
    view, planned = fail(view, 70, after=now)
    assert (planned.status.phase, planned.status.reason) == ("Failed", "BackoffLimitExceeded")
    assert "3 attempts failed" in (planned.status.message or "")


def test_disruptions_do_not_count() -> None:
    view = begun(backoffLimit=0)
    view, planned = fail(view, 137, disruption="PreemptionByScheduler: preempting")
    assert planned.status.reason == "RetryBackoff"
    view = retried(view, Snapshot(), after=10)
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
            view = retried(view, Snapshot(), after=now)
    return planned


def test_three_disruptions_without_a_newer_checkpoint_fail_the_job() -> None:
    assert disrupted_three_times([None, None, None]).status.reason == "NoProgress"
    assert disrupted_three_times([5, 5, 5]).status.reason == "RetryBackoff"
    assert disrupted_three_times([5, 10, 15]).status.reason == "RetryBackoff"
    assert disrupted_three_times([5, 5, 5, 5]).status.reason == "NoProgress"


@pytest.mark.parametrize("recompute", ["auto", "all", "none"])
def test_gpu_out_of_memory_halves_the_micro_batch_down_to_one_and_then_recomputes_all_layers(recompute: str) -> None:
    training = {"epochs": 1, "globalBatchSize": 12, "microBatchSize": 6, "recompute": recompute}
    view = begun(training=training, backoffLimit=0)
    sizes = []
    now = 0.0
    for _ in range(6):
        view, planned = fail(view, 71, after=now)
        if planned.status.phase == "Failed":
            break
        now += 1000
        view = retried(view, Snapshot(), after=now)
        planned = step(view, Snapshot())
        assert isinstance(planned.step, Create)
        annotations = planned.step.manifests[-1]["spec"]["template"]["metadata"]["annotations"]
        facts = json.loads(annotations["finetune-operator.io/attempt-facts"])
        sizes.append((facts["microBatchSize"], facts.get("recompute")))
    assert sizes == [(3, None), (1, None), *([(1, "all")] if recompute == "auto" else [])]
    assert planned.status.reason == "GPUOutOfMemory"
    assert ("set training.recompute to all" in (planned.status.message or "")) == (recompute == "none")


def test_a_gpu_that_was_too_small_with_all_layers_recomputed_fails_the_job() -> None:
    view = begun(training={"epochs": 1, "globalBatchSize": 1, "microBatchSize": 1})
    view = replace(view, status={**view.status, "result": json.loads(oom("train", recompute="all"))})
    view, planned = fail(view, 71, terminated_message=oom("train", recompute="all"))
    assert (planned.status.phase, planned.status.reason) == ("Failed", "GPUOutOfMemory")


def test_more_recomputation_is_announced() -> None:
    view = begun(training={"epochs": 1, "globalBatchSize": 1, "microBatchSize": 1})
    _, planned = fail(view, 71, terminated_message=oom("train", recompute="8 of 32 layers"))
    assert "with all layers recomputed." in (planned.status.message or "")


def test_gpu_out_of_memory_halves_the_tokens_of_a_micro_batch_down_to_the_longest_row() -> None:
    """A micro-batch is at least the longest row, which prepare counted."""
    view = begun(training={"epochs": 1, "microBatchTokens": 10_000})
    status = {**view.status, "prepared": {**view.status["prepared"], "longestRow": 3000}}
    view, now, said = replace(view, status=status), 0.0, []
    for _ in range(5):
        view, planned = fail(view, 71, after=now, terminated_message=oom("train", microBatchTokens=5000))
        said.append(planned.status.message or "")
        if planned.status.phase == "Failed":
            break
        now += 1000
        view = retried(view, Snapshot(), after=now)
    assert [entry.get("microBatchTokens") for entry in view.status["attempts"]] == [None, 5000, 3000, 3000]
    assert [entry.get("microBatchSize") for entry in view.status["attempts"]] == [None] * 4
    assert [entry.get("recompute") for entry in view.status["attempts"]] == [None, None, None, "all"]
    assert "at most 5,000 tokens at once" in said[0]
    assert "with a micro-batch of 5,000 tokens." in said[0]
    assert planned.status.reason == "GPUOutOfMemory"
    assert "The micro-batch is no longer than the longest row already. Lower training.cutoffLength" in said[-1]
    facts = step(begun(training={"epochs": 1, "microBatchTokens": 10_000})).step
    assert isinstance(facts, Create)
    annotations = facts.manifests[-1]["spec"]["template"]["metadata"]["annotations"]
    resolved = json.loads(annotations["finetune-operator.io/resolved-job"])
    assert resolved["training"]["microBatchTokens"] == 10_000


def oom(phase: str, **more: int | str) -> str:
    held = {} if "microBatchTokens" in more else {"microBatchSize": 4}
    full = {"phase": phase, "rank": 0, **held, **more}
    return result(71, outOfMemory=full).model_dump_json(by_alias=True)


def test_a_gpu_out_of_memory_in_evaluation_keeps_the_micro_batch_and_counts() -> None:
    view, now = begun(training={"epochs": 1, "microBatchSize": 4}, backoffLimit=1), 0.0
    view, planned = fail(view, 71, after=now, terminated_message=oom("evaluate"))
    assert planned.status.reason == "RetryBackoff"
    assert "when evaluating" in (planned.status.message or "")
    view = retried(view, Snapshot(), after=1000)
    assert view.status["attempts"][-1].get("microBatchSize") is None
    view, planned = fail(view, 71, after=1000, terminated_message=oom("evaluate"))
    assert (planned.status.phase, planned.status.reason) == ("Failed", "GPUOutOfMemory")
    assert "spec.backoffLimit is 1" in (planned.status.message or "")


def test_after_training_ran_out_of_memory_the_smaller_micro_batch_stays() -> None:
    view = begun(training={"epochs": 1, "globalBatchSize": 8, "microBatchSize": 4})
    view, planned = fail(view, 71, terminated_message=oom("train"))
    assert "with a micro-batch of 2." in (planned.status.message or "")
    view = retried(view, Snapshot(), after=1000)
    view, _ = fail(view, 71, after=1000, terminated_message=oom("save"))
    view = retried(view, Snapshot(), after=2000)
    assert [entry.get("microBatchSize") for entry in view.status["attempts"]] == [None, 2, 2]


def test_jobs_that_starved_each_other_begin_again_at_different_times() -> None:
    waits = set()
    for uid in ("0a1b2c3d", "ffeeddcc"):
        view = replace(prepared(resources=TWO_NODES, startDeadlineSeconds=60), uid=uid)
        view = with_status(view, step(view))
        mine = replace(child_job(), owner_uid=uid, name=view.status["attempts"][0]["job"])
        stuck = Snapshot((mine,), (running(), pod(rank=1, unschedulable="0/2 nodes")))
        view = with_status(view, step(view, stuck, after=61))
        assert isinstance(step(view, stuck, after=61).step, Delete)
        planned = step(view, Snapshot(), after=70)
        assert planned.status.reason == "RetryBackoff"
        assert "PartlyScheduled" in (planned.status.message or "")
        waits.add(wait(planned, after=70))
    assert len(waits) == 2
    assert all(seconds is not None and 10 <= seconds <= 20 for seconds in waits)


def test_the_list_of_attempts_is_bounded_and_the_counts_are_not() -> None:
    view, now = begun(backoffLimit=100), 0.0
    for _ in range(30):
        view, _ = fail(view, 70, after=now)
        now += 1000
        view = retried(view, Snapshot(), after=now)
    assert len(view.status["attempts"]) == 20
    assert view.status["attempts"][-1]["failures"] == 30
