"""How an attempt is judged, from whatever evidence is left."""

from __future__ import annotations

import itertools

import pytest
from finetune_api.exit_codes import SEVERITY, ExitCode
from finetune_api.status import Result
from finetune_operator.exit_classes import ROWS, EndClass, Row, end_class
from finetune_operator.manifests.attempt import _rule
from finetune_operator.observed import BatchView, PodView
from finetune_operator.plan.judgement import judge

from tests.unit.operator.make import batch, ended, pod, result

FAILED = batch(failed_reason="PodFailurePolicy")


def test_done_only_when_every_rank_is() -> None:
    assert judge(batch(complete=True), [ended(0), ended(0, rank=1)], None, 2).end is EndClass.DONE
    assert judge(FAILED, [ended(0), ended(70, rank=1)], None, 2).end is EndClass.RETRY


STRENGTH: list[int | str] = [65, 75, "disrupted", 72, 71, "OOMKilled", 137, 69, 76, 70, 78]
"""A pod that is lost before what its peers say of that."""


@pytest.mark.parametrize("pair", itertools.combinations(STRENGTH, 2), ids=str)
def test_among_pods_the_stronger_wins_in_either_order(pair: tuple[int | str, int | str]) -> None:
    strong, weak = pair

    def as_pod(what: int | str, rank: int) -> PodView:
        if what == "disrupted":
            return ended(1, rank=rank, disruption="EvictionByEvictionAPI: evicting")
        if what == "OOMKilled":
            return ended(137, rank=rank, terminated_reason="OOMKilled")
        return ended(int(what), rank=rank)

    alone = judge(FAILED, [as_pod(strong, 0)], None, 1)
    for pods in ([as_pod(strong, 0), as_pod(weak, 1)], [as_pod(weak, 0), as_pod(strong, 1)]):
        verdict = judge(FAILED, pods, None, 2)
        assert (verdict.end, verdict.reason) == (alone.end, alone.reason)


def test_a_pod_that_was_disrupted_but_blames_the_data_blames_the_data() -> None:
    verdict = judge(FAILED, [ended(65, disruption="EvictionByEvictionAPI: evicting")], None, 1)
    assert verdict.end is EndClass.USER_ERROR


def test_of_equals_the_first_to_end_is_the_cause() -> None:
    """Whoever breaks breaks the others' connections."""
    first = ended(1, rank=1, ended="2026-01-31T12:00:01Z")
    later = ended(70, rank=0, ended="2026-01-31T12:00:05Z")
    verdict = judge(FAILED, [later, first], None, 2)
    assert verdict.exit_code == 1
    assert verdict.message.startswith("Node rank 1 (pod demo-0a1b2-1-1-abcde)")


def job_says(said: str) -> BatchView:
    return batch(failed_reason="PodFailurePolicy", failed_message=said)


def test_a_pod_that_was_deleted_because_another_failed_was_not_drained() -> None:
    """The Job controller asks the rest to end, and they save."""
    broken = ended(70, rank=0)
    asked = ended(75, rank=1, deleting=True)
    said = f"Container trainer for pod team/{broken.name} failed with exit code 70 matching FailJob rule at index 5"
    verdict = judge(job_says(said), [asked, broken], None, 2)
    assert (verdict.end, verdict.exit_code) == (EndClass.RETRY, 70)
    assert judge(job_says(said), [asked], None, 2).exit_code == 70
    assert judge(batch(failed_reason="BackoffLimitExceeded"), [asked, ended(1)], None, 2).exit_code == 1


def test_a_pod_that_somebody_deleted_and_that_saved_is_a_disruption() -> None:
    asked = ended(75, rank=1, deleting=True)
    said = f"Container trainer for pod team/{asked.name} failed with exit code 75 matching FailJob rule at index 1"
    assert judge(job_says(said), [ended(70), asked], None, 2).end is EndClass.DISRUPTION
    assert judge(job_says(said), [ended(70)], None, 2).end is EndClass.DISRUPTION


def test_a_drained_pod_that_is_gone_is_the_cause_of_what_its_peers_say() -> None:
    """By the Job's condition, or by what was noted before it went."""
    said = "Pod team/demo-0a1b2-1-1-abcde has condition DisruptionTarget matching FailJob rule at index 2"
    verdict = judge(job_says(said), [ended(70)], None, 2)
    assert (verdict.end, verdict.message) == (EndClass.DISRUPTION, said)
    peer = job_says("Container trainer for pod team/a failed with exit code 70 matching FailJob rule at index 5")
    verdict = judge(peer, [ended(70)], None, 2, disruption="Node rank 1 (pod p): DeletionByTaintManager: gone")
    assert (verdict.end, verdict.reason) == (EndClass.DISRUPTION, "Disrupted")
    assert "DeletionByTaintManager" in verdict.message
    assert judge(peer, [ended(65)], None, 2, disruption="x").end is EndClass.USER_ERROR


def test_what_was_made_is_said_by_the_first_pod() -> None:
    made = {"uri": "pvc://w/jobs/demo/artifact", "kind": "adapter", "digest": "sha256:1", "sizeBytes": 5}
    first = ended(0, terminated_message=result(0, artifact=made).model_dump_json(by_alias=True))
    other = ended(0, rank=1, terminated_message=result(0).model_dump_json(by_alias=True))
    for pods in ([first, other], [other, first]):
        verdict = judge(batch(complete=True), pods, None, 2)
        assert verdict.result is not None
        assert verdict.result.artifact is not None


def out_of_memory(phase: str, **measured: int) -> Result:
    full = {"phase": phase, "rank": 3, "microBatchSize": 4, **measured}
    return result(71, outOfMemory=full)


def test_a_gpu_out_of_memory_is_told_with_phase_rank_batch_and_numbers() -> None:
    said = out_of_memory("train", peakBytes=75 * 2**30, freeBytes=2**29)
    verdict = judge(FAILED, [ended(71, terminated_message=said.model_dump_json(by_alias=True))], None, 1)
    assert (verdict.end, verdict.reason) == (EndClass.GPU_OUT_OF_MEMORY, "GPUOutOfMemory")
    assert verdict.message == (
        "The GPU of rank 3 ran out of memory when training, 4 rows at once (its tensors held 75.0 GiB at most,"
        " 0.5 GiB were free)."
    )


@pytest.mark.parametrize("phase", ["load", "evaluate", "generate", "save"])
def test_a_smaller_micro_batch_would_not_help_where_nothing_is_trained(phase: str) -> None:
    verdict = judge(job_says("pod team/p failed with exit code 71 matching"), [], out_of_memory(phase), 1)
    assert (verdict.end, verdict.reason) == (EndClass.RETRY, "GPUOutOfMemory")


def test_a_hang_says_where_to_look_also_without_words_of_the_trainer() -> None:
    verdict = judge(FAILED, [ended(76)], None, 1)
    assert (verdict.end, verdict.reason) == (EndClass.RETRY, "Hung")
    assert "stacks" in verdict.message


def test_out_of_host_memory_names_the_limit_and_what_was_seen() -> None:
    told = judge(FAILED, [ended(137, terminated_reason="OOMKilled")], None, 1, peak_bytes=15 * 2**30)
    assert "limit of 16Gi and was killed (the last report of the first pod: 15.0 GiB)" in told.message

    verdict = judge(FAILED, [ended(137, terminated_reason="OOMKilled", memory_limit="6Gi")], None, 1)
    assert (verdict.end, verdict.reason) == (EndClass.RETRY, "OutOfMemory")
    assert "6Gi" in verdict.message
    assert "spec.resources.memory" in verdict.message
    verdict = judge(FAILED, [ended(137, kind="prepare", terminated_reason="OOMKilled")], None, 1)
    assert "spec.prepare.memory" in verdict.message


@pytest.mark.parametrize("row", ROWS)
def test_the_job_alone_is_evidence_enough(row: Row) -> None:
    """With the pods gone, the message that the Job controller writes for each of our rules leads to its class."""
    index = ROWS.index(row)
    if row.codes:
        code = int(row.codes[0])
        text = f"Container trainer for pod team/p failed with exit code {code} matching FailJob rule at index {index}"
    else:
        text = f"Pod team/p has condition DisruptionTarget matching FailJob rule at index {index}"
    verdict = judge(batch(failed_reason="PodFailurePolicy", failed_message=text), [], None, 1)
    assert verdict.end is row.end


def test_the_trainers_result_is_evidence_for_its_own_attempt_only() -> None:
    bare = batch(2, failed_reason="BackoffLimitExceeded", failed_message="Job has reached the specified backoff limit")
    assert judge(bare, [], result(65, attempt=2, message="row 7"), 1).message == "row 7"
    assert judge(bare, [], result(65, attempt=1, message="row 7"), 1).end is EndClass.RETRY
    assert judge(bare, [], result(65, attempt=2, message="row 7", kind="prepare"), 1).end is EndClass.RETRY
    assert judge(bare, [], None, 1).reason == "Unknown"


def test_an_evicted_pod_without_exit_code_is_told_apart() -> None:
    verdict = judge(FAILED, [pod(phase="Failed", status_reason="Evicted")], None, 1)
    assert verdict.end is EndClass.RETRY
    assert "Evicted" in verdict.message


def test_half_a_termination_message_is_no_result() -> None:
    verdict = judge(FAILED, [ended(70, terminated_message='{"kind": "tr')], None, 1)
    assert verdict.reason == "InternalError"
    assert "70" in verdict.message


def test_the_jobs_rules_cover_every_code_once() -> None:
    rules = [_rule(row) for row in ROWS]
    codes = [code for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])]
    assert len(codes) == len(set(codes))
    assert all(code != 0 for code in codes)
    assert [end_class(code) for code in (0, 1, 255)] == [EndClass.DONE, EndClass.RETRY, EndClass.RETRY]


def test_launcher_and_operator_rank_the_codes_alike() -> None:
    """Between ranks the launcher goes by SEVERITY, between pods the operator by their classes."""
    rows = [tuple(code for code in row.codes if code in list(ExitCode)) for row in ROWS if row.codes]
    assert [set(row) for row in rows] == [set(group) for group in SEVERITY]
