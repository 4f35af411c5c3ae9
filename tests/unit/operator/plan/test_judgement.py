"""How an attempt is judged, from whatever evidence is left."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from finetune_api.exit_codes import END_RULES, EndClass, EndRule, ExitCode, end_class, strongest
from finetune_api.status import Result
from finetune_operator.manifests.attempt import _rule
from finetune_operator.plan.judgement import judge
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.pod import PodView

from tests.unit.operator.make import NOW, child_job, ended, pod, result

FAILED = child_job(failed_reason="PodFailurePolicy")


def test_an_attempt_is_done_only_if_every_rank_is() -> None:
    assert judge(child_job(complete=True), [ended(0), ended(0, rank=1)], None, 2).end is EndClass.DONE
    assert judge(FAILED, [ended(0), ended(70, rank=1)], None, 2).end is EndClass.RETRY


def test_the_result_in_the_status_is_whole_when_the_termination_message_was_cut() -> None:
    whole = Result(kind="train", attempt=1, exit_code=0, reason="Completed", message="Done.", metrics={"loss": "1.5"})
    cut = whole.model_copy(update={"metrics": None}).model_dump_json(by_alias=True, exclude_none=True)
    pods = [ended(0, terminated_message=cut)]
    assert judge(child_job(complete=True), pods, whole, 1).result == whole
    interrupted = whole.model_copy(update={"exit_code": 75, "reason": "Disrupted"})
    verdict = judge(child_job(complete=True), pods, interrupted, 1)
    assert verdict.result == Result.model_validate_json(cut), "of an earlier run of the attempt"


STRENGTH: list[int | str] = [65, 75, "disrupted", 72, 71, "OOMKilled", 137, 69, 76, 70, 78]
"""The end of a lost pod comes before the errors of its peers."""


@pytest.mark.parametrize("pair", itertools.combinations(STRENGTH, 2), ids=str)
def test_among_pods_the_stronger_end_wins_in_either_order(pair: tuple[int | str, int | str]) -> None:
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


def test_a_disrupted_pod_that_reports_invalid_data_is_a_user_error() -> None:
    verdict = judge(FAILED, [ended(65, disruption="EvictionByEvictionAPI: evicting")], None, 1)
    assert verdict.end is EndClass.USER_ERROR


def test_among_equal_ends_the_first_is_the_cause() -> None:
    """A process that fails breaks the connections of its peers."""
    first = ended(1, rank=1, ended=NOW + timedelta(seconds=1))
    later = ended(70, rank=0, ended=NOW + timedelta(seconds=5))
    verdict = judge(FAILED, [later, first], None, 2)
    assert verdict.exit_code == 1
    assert verdict.message.startswith("Node rank 1 (pod demo-0a1b2-1-1-abcde)")


def job_says(text: str) -> ChildJobView:
    return child_job(failed_reason="PodFailurePolicy", failed_message=text)


def test_a_pod_that_was_deleted_because_another_failed_was_not_drained() -> None:
    """The Job controller deletes the other pods, and they save."""
    broken = ended(70, rank=0)
    asked = ended(75, rank=1, deleting=True)
    text = f"Container trainer for pod team/{broken.name} failed with exit code 70 matching FailJob rule at index 5"
    verdict = judge(job_says(text), [asked, broken], None, 2)
    assert (verdict.end, verdict.exit_code) == (EndClass.RETRY, 70)
    assert judge(job_says(text), [asked], None, 2).exit_code == 70
    assert judge(child_job(failed_reason="BackoffLimitExceeded"), [asked, ended(1)], None, 2).exit_code == 1


def test_a_pod_that_somebody_deleted_and_that_saved_is_a_disruption() -> None:
    asked = ended(75, rank=1, deleting=True)
    text = f"Container trainer for pod team/{asked.name} failed with exit code 75 matching FailJob rule at index 1"
    assert judge(job_says(text), [ended(70), asked], None, 2).end is EndClass.DISRUPTION
    assert judge(job_says(text), [ended(70)], None, 2).end is EndClass.DISRUPTION


def test_a_drained_pod_that_is_gone_explains_the_errors_of_its_peers() -> None:
    """By the child job's condition, or by what was noted before the pod was gone."""
    text = "Pod team/demo-0a1b2-1-1-abcde has condition DisruptionTarget matching FailJob rule at index 2"
    verdict = judge(job_says(text), [ended(70)], None, 2)
    assert (verdict.end, verdict.message) == (EndClass.DISRUPTION, text)
    peer = job_says("Container trainer for pod team/a failed with exit code 70 matching FailJob rule at index 5")
    verdict = judge(peer, [ended(70)], None, 2, disruption="Node rank 1 (pod p): DeletionByTaintManager: gone")
    assert (verdict.end, verdict.reason) == (EndClass.DISRUPTION, "Disrupted")
    assert "DeletionByTaintManager" in verdict.message
    assert judge(peer, [ended(65)], None, 2, disruption="x").end is EndClass.USER_ERROR


def test_the_first_pod_reports_the_artifact() -> None:
    made = {"uri": "pvc://w/jobs/demo/artifact", "kind": "adapter", "digest": "sha256:1", "sizeBytes": 5}
    first = ended(0, terminated_message=result(0, artifact=made).model_dump_json(by_alias=True))
    other = ended(0, rank=1, terminated_message=result(0).model_dump_json(by_alias=True))
    for pods in ([first, other], [other, first]):
        verdict = judge(child_job(complete=True), pods, None, 2)
        assert verdict.result is not None
        assert verdict.result.artifact is not None


def out_of_memory(phase: str, **measured: int) -> Result:
    full = {"phase": phase, "rank": 3, "microBatchSize": 4, **measured}
    return result(71, outOfMemory=full)


def test_a_gpu_out_of_memory_is_reported_with_phase_rank_micro_batch_and_sizes() -> None:
    text = out_of_memory("train", peakBytes=75 * 2**30, freeBytes=2**29)
    verdict = judge(FAILED, [ended(71, terminated_message=text.model_dump_json(by_alias=True))], None, 1)
    assert (verdict.end, verdict.reason) == (EndClass.GPU_OUT_OF_MEMORY, "GPUOutOfMemory")
    assert verdict.message == (
        "The GPU of rank 3 ran out of memory when training, 4 rows at once (its tensors held 75.0 GiB at most,"
        " 0.5 GiB were free)."
    )


@pytest.mark.parametrize("phase", ["load", "evaluate", "generate", "save"])
def test_a_smaller_micro_batch_does_not_help_outside_training(phase: str) -> None:
    verdict = judge(job_says("pod team/p failed with exit code 71 matching"), [], out_of_memory(phase), 1)
    assert (verdict.end, verdict.reason) == (EndClass.RETRY, "GPUOutOfMemory")


def test_a_hang_without_a_result_says_where_to_look() -> None:
    verdict = judge(FAILED, [ended(76)], None, 1)
    assert (verdict.end, verdict.reason) == (EndClass.RETRY, "Hung")
    assert "stacks" in verdict.message


def test_out_of_host_memory_names_the_limit_and_the_last_report() -> None:
    verdict = judge(FAILED, [ended(137, terminated_reason="OOMKilled")], None, 1, peak_bytes=15 * 2**30)
    assert "limit of 16Gi and was killed (last report of rank 0: 15.0 GiB)" in verdict.message

    verdict = judge(FAILED, [ended(137, terminated_reason="OOMKilled", memory_limit="6Gi")], None, 1)
    assert (verdict.end, verdict.reason) == (EndClass.RETRY, "OutOfMemory")
    assert "6Gi" in verdict.message
    assert "spec.resources.memory" in verdict.message
    verdict = judge(FAILED, [ended(137, kind="prepare", terminated_reason="OOMKilled")], None, 1)
    assert "spec.prepare.memory" in verdict.message


@pytest.mark.parametrize("rule", END_RULES)
def test_the_child_job_alone_is_enough_evidence(rule: EndRule) -> None:
    """Without pods, the message that the Job controller writes for each rule leads to its class."""
    index = END_RULES.index(rule)
    if rule.codes:
        code = int(rule.codes[0])
        text = f"Container trainer for pod team/p failed with exit code {code} matching FailJob rule at index {index}"
    else:
        text = f"Pod team/p has condition DisruptionTarget matching FailJob rule at index {index}"
    verdict = judge(child_job(failed_reason="PodFailurePolicy", failed_message=text), [], None, 1)
    assert verdict.end is rule.end


def test_the_trainers_result_is_evidence_for_its_own_attempt_only() -> None:
    bare = child_job(
        2, failed_reason="BackoffLimitExceeded", failed_message="Job has reached the specified backoff limit"
    )
    assert judge(bare, [], result(65, attempt=2, message="row 7"), 1).message == "row 7"
    assert judge(bare, [], result(65, attempt=1, message="row 7"), 1).end is EndClass.RETRY
    assert judge(bare, [], result(65, attempt=2, message="row 7", kind="prepare"), 1).end is EndClass.RETRY
    assert judge(bare, [], None, 1).reason == "Unknown"


def test_an_evicted_pod_without_exit_code_is_reported_as_evicted() -> None:
    verdict = judge(FAILED, [pod(phase="Failed", status_reason="Evicted")], None, 1)
    assert verdict.end is EndClass.RETRY
    assert "Evicted" in verdict.message


def test_half_a_termination_message_is_no_result() -> None:
    verdict = judge(FAILED, [ended(70, terminated_message='{"kind": "tr')], None, 1)
    assert verdict.reason == "InternalError"
    assert "70" in verdict.message


def test_the_rules_of_the_child_job_cover_every_code_once() -> None:
    rules = [_rule(rule) for rule in END_RULES]
    codes = [code for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])]
    assert len(codes) == len(set(codes))
    assert all(code != 0 for code in codes)
    assert [end_class(code) for code in (0, 1, 255)] == [EndClass.DONE, EndClass.RETRY, EndClass.RETRY]


def test_launcher_and_operator_rank_the_codes_in_the_same_way() -> None:
    """Among ranks the launcher chooses a code, among pods the operator a verdict, by the same rules."""
    order = list(EndClass)
    for pair in itertools.permutations(ExitCode, 2):
        assert order.index(end_class(strongest(list(pair)))) == min(
            order.index(end_class(code)) for code in pair if code != ExitCode.DONE
        )


OWN_LIMITS = [
    'Usage of EmptyDir volume "finetune-tmp" exceeds the limit "32Gi". ',
    "Pod ephemeral local storage usage exceeds the total limit of containers 10Gi. ",
    'Container trainer exceeded its local ephemeral storage limit "10Gi". ',
]
PRESSURE = [
    "The node was low on resource: ephemeral-storage. Threshold quantity: 10, available: 5Ki. Container trainer was"
    " using 9Gi, request is 0, has larger consumption of ephemeral-storage.",
    "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi.",
]


def evicted(words: str, rank: int = 0) -> PodView:
    disruption = f"TerminationByKubelet: {words}"
    return ended(137, rank=rank, disruption=disruption, status_reason="Evicted")


@pytest.mark.parametrize("words", OWN_LIMITS)
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("left", [True, False], ids=["the pod is left", "the pod is gone"])
def test_an_eviction_for_a_limit_of_the_pod_itself_counts(words: str, nodes: int, left: bool) -> None:
    """Whatever else is left of it: another node would not help, so it must not be tried for ever."""
    culprit = evicted(words, rank=nodes - 1)
    peers = [ended(75, rank=0, deleting=True)] if nodes == 2 else []
    title = culprit.title(nodes)
    noted = f"{title}: {culprit.disruption}"
    child = job_says(f"Pod team/{culprit.name} has condition DisruptionTarget matching FailJob rule at index 2")
    verdict = judge(child, [*peers, culprit] if left else peers, None, nodes, disruption="" if left else noted)
    assert (verdict.end, verdict.reason) == (EndClass.RETRY, "NoSpace")
    assert verdict.message.startswith(f"{title} was evicted for a limit of its own: {words.strip()}")


@pytest.mark.parametrize("words", PRESSURE)
def test_an_eviction_for_pressure_on_the_node_is_a_disruption(words: str) -> None:
    culprit = evicted(words)
    child = job_says(f"Pod team/{culprit.name} has condition DisruptionTarget matching FailJob rule at index 2")
    assert judge(child, [culprit], None, 1).end is EndClass.DISRUPTION
    assert judge(child, [], None, 1, disruption=f"{culprit.title(1)}: {culprit.disruption}").end is EndClass.DISRUPTION


def test_a_drain_of_one_pod_outranks_the_eviction_of_another() -> None:
    drained = ended(75, rank=0, disruption="EvictionByEvictionAPI: evicting")
    assert judge(FAILED, [drained, evicted(OWN_LIMITS[0], rank=1)], None, 2).end is EndClass.DISRUPTION
