"""How an attempt is judged, from whatever evidence is left."""

from __future__ import annotations

import itertools

import pytest
from finetune_api.exit_codes import SEVERITY, ExitCode
from finetune_operator.exit_classes import ROWS, EndClass, Row, end_class
from finetune_operator.manifests.attempt import _rule
from finetune_operator.observed import PodView
from finetune_operator.plan.judgement import judge

from tests.unit.operator.make import batch, ended, pod, result

FAILED = batch(failed_reason="PodFailurePolicy")


def test_done_only_when_every_rank_is() -> None:
    assert judge(batch(complete=True), [ended(0), ended(0, rank=1)], None, 2).end is EndClass.DONE
    assert judge(FAILED, [ended(0), ended(70, rank=1)], None, 2).end is EndClass.RETRY


STRENGTH: list[list[int | str]] = [
    [64, 65, 66, 77],
    [75],
    ["disrupted"],
    [72, 73, 74],
    [71],
    [76, 69, 70],
    [137, 143, 78],
    [1],
]


@pytest.mark.parametrize("pair", itertools.combinations(range(len(STRENGTH)), 2))
def test_across_ranks_the_stronger_row_wins_in_either_order(pair: tuple[int, int]) -> None:
    strong, weak = (STRENGTH[row][0] for row in pair)

    def as_pod(what: int | str, rank: int) -> PodView:
        disruption = "EvictionByEvictionAPI: evicting" if what == "disrupted" else None
        return ended(1 if what == "disrupted" else int(what), rank=rank, disruption=disruption)

    alone = judge(FAILED, [as_pod(strong, 0)], None, 1)
    for pods in ([as_pod(strong, 0), as_pod(weak, 1)], [as_pod(weak, 0), as_pod(strong, 1)]):
        verdict = judge(FAILED, pods, None, 2)
        assert (verdict.end, verdict.reason) == (alone.end, alone.reason)


def test_a_pod_that_was_disrupted_but_blames_the_data_blames_the_data() -> None:
    verdict = judge(FAILED, [ended(65, disruption="EvictionByEvictionAPI: evicting")], None, 1)
    assert verdict.end is EndClass.USER_ERROR


def test_out_of_host_memory_names_the_limit() -> None:
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
    """Between ranks the launcher goes by SEVERITY, between pods the operator by ROWS."""
    rows = [tuple(code for code in row.codes if code in list(ExitCode)) for row in ROWS if row.codes]
    assert [set(row) for row in rows] == [set(group) for group in SEVERITY]
