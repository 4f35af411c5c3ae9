"""Jobs that use the artifacts of other jobs: what they wait for, what is invalid, and what is fixed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_api.contract import ResolvedJob
from finetune_api.status import Resolved
from finetune_api.stored_job import load, store
from finetune_operator.plan import Create
from finetune_operator.views.child_job import AcceptedTerms
from finetune_operator.views.claim import ClaimView
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    among,
    artifact,
    child_job,
    job,
    other,
    over,
    running,
    step,
    succeeded,
    with_status,
)

SFT, RM = succeeded("sft"), succeeded("rm", "rm")
FROM_SFT: dict[str, Any] = {"model": {"fromJob": "sft"}}
PPO: dict[str, Any] = {
    "stage": "ppo",
    **FROM_SFT,
    "ppo": {"rewardModel": {"fromJob": "rm"}, "reference": {"fromJob": "sft"}},
}


def outcome(view: JobView, snapshot: Snapshot) -> tuple[str, str, str, str]:
    """Phase, reason, value of the condition Accepted, and message. No attempt may have begun."""
    planned = step(view, snapshot)
    assert planned.step is None
    status = planned.status
    assert not status.prepare_attempts
    assert not status.references
    [accepted] = [c for c in status.conditions or [] if c.type == "Accepted"]
    assert (accepted.reason, accepted.message) == (status.reason, status.message)
    return str(status.phase), str(status.reason), accepted.status, str(status.message)


def test_references_are_fixed_with_acceptance_before_any_child_job_is_created() -> None:
    first = step(job(**PPO), among(SFT, RM))
    assert first.step is None
    assert [
        (reference.use, reference.job, reference.uid, reference.stage) for reference in first.status.references or []
    ] == [
        ("model", "sft", "uid-of-sft", "sft"),
        ("reference", "sft", "uid-of-sft", "sft"),
        ("rewardModel", "rm", "uid-of-rm", "rm"),
    ]
    assert [reference.artifact.digest for reference in first.status.references or []] == [
        "sha256:sft",
        "sha256:sft",
        "sha256:rm",
    ]
    second = step(with_status(job(**PPO), first))
    assert isinstance(second.step, Create)
    annotations = second.step.manifests[-1]["spec"]["template"]["metadata"]["annotations"]
    resolved = ResolvedJob.model_validate_json(annotations["finetune-operator.io/resolved-job"])
    assert resolved.references == first.status.references
    assert resolved.model.source == "pvc://models/base"
    assert resolved.tuning.adapter is not None
    assert resolved.tuning.adapter.source == artifact("sft")["uri"]


@pytest.mark.parametrize("now", [(), (succeeded("sft", digest="sha256:new"), other("rm", "rm", over("Failed")))])
def test_fixed_references_ignore_later_changes_of_the_other_jobs(now: tuple[JobView, ...]) -> None:
    accepted = with_status(job(**PPO), step(job(**PPO), among(SFT, RM)))
    planned = step(
        accepted, replace(among(*now), child_jobs=(child_job(kind="prepare"),), pods=(running(kind="prepare"),))
    )
    assert planned.status.phase == "Preparing"
    assert planned.status.to_dict()["references"] == accepted.status["references"]


def test_a_wiped_status_recovers_the_references_from_the_child_job() -> None:
    """The other jobs may be deleted, recreated or Failed by then, and the operator may be upgraded."""
    accepted = with_status(job(**PPO), step(job(**PPO), among(SFT, RM)))
    references = step(accepted).status.references or []
    document = {**json.loads(load(accepted.status["resolved"]["job"])), "contract": 2, "digest": "sha256:older"}
    stored = store(json.dumps(document))
    resolved = Resolved(image="registry.example/older", contract=2, digest="sha256:older", job=stored)
    seen = replace(
        among(succeeded("sft", digest="sha256:new"), other("rm", "rm", over("Failed"))),
        child_jobs=(child_job(2, "prepare"),),
        accepted_terms=AcceptedTerms(references, resolved),
    )
    planned = step(job(**PPO), seen)
    assert (planned.status.phase, planned.status.prepare_attempt, planned.step) == ("Preparing", 2, None)
    assert (planned.status.references, planned.status.resolved) == (references, resolved)


PROGRESS = {
    "attempt": 1,
    "step": 47,
    "totalSteps": 100,
    "percent": 47,
    "summary": "47/100 (47%)",
    "lastUpdateTime": "2026-01-31T12:00:00Z",
}
WAITING = {
    "not there": (None, "which does not exist. Create it"),
    "being deleted": (replace(SFT, deleting=True), "which is being deleted. Recreate it once it is gone"),
    "new": (other("sft"), "which is Pending"),
    "itself waiting": (
        other("sft", status={"phase": "Pending", "reason": "WaitingForJob"}),
        "which is Pending (WaitingForJob)",
    ),
    "starting": (
        other("sft", status={"phase": "Starting", "reason": "Unschedulable"}),
        "which is Starting (Unschedulable)",
    ),
    "running": (
        other("sft", status={"phase": "Running", "reason": "Running", "progress": PROGRESS}),
        "which is Running, 40 % done",
    ),
}


@pytest.mark.parametrize("case", WAITING)
def test_the_message_says_which_job_it_waits_for(case: str) -> None:
    sft, doing = WAITING[case]
    phase, reason, accepted, message = outcome(job(**FROM_SFT), among(*([sft] if sft else [])))
    assert (phase, reason, accepted) == ("Pending", "WaitingForJob", "Unknown")
    assert message.startswith(f"Waiting for job sft (model.fromJob), {doing}")


def test_the_message_names_every_missing_job_and_no_other() -> None:
    ppo = {**PPO, "ppo": {"rewardModel": {"fromJob": "rm"}, "reference": {"fromJob": "old"}}}
    message = outcome(job(**ppo), among(SFT, other("rm", "rm")))[3]
    assert "job rm (ppo.rewardModel.fromJob), which is Pending." in message
    assert "job old (ppo.reference.fromJob), which does not exist" in message
    assert "job sft" not in message


def test_waiting_writes_nothing_while_nothing_changes() -> None:
    planned = step(job(**FROM_SFT), among(other("sft")))
    again = step(with_status(job(**FROM_SFT), planned), among(other("sft")), after=1e5)
    assert (again.status, again.step) == (planned.status, None)


def test_a_failed_job_fails_its_dependents_with_its_message() -> None:
    sft = other("sft", status=over("Failed", "InvalidData", "train.jsonl:7: output is empty."))
    phase, reason, accepted, message = outcome(job(**PPO), among(sft))
    assert (phase, reason, accepted) == ("Failed", "DependencyFailed", "False")
    assert "job sft (model.fromJob) has Failed: InvalidData: train.jsonl:7: output is empty." in message
    phase, reason, _, _ = outcome(job(**FROM_SFT), among(other("sft", status=over("Succeeded"))))
    assert (phase, reason) == ("Failed", "DependencyFailed"), "it lost its artifact"


@pytest.mark.parametrize(
    ("spec", "stage", "fits"),
    [
        (PPO, "rm", True),
        (PPO, "sft", False),
        ({"stage": "dpo", "dpo": {"reference": {"fromJob": "rm"}}}, "dpo", True),
        ({"stage": "kto", "kto": {"reference": {"fromJob": "rm"}}}, "rm", False),
        ({"model": {"fromJob": "rm"}}, "pt", True),
        ({"model": {"fromJob": "rm"}}, "rm", False),
        ({"stage": "rm", "model": {"fromJob": "rm"}}, "rm", True),
    ],
)
def test_a_job_of_the_wrong_stage_is_invalid_before_it_has_ended(spec: dict[str, Any], stage: str, fits: bool) -> None:
    formats = {"dpo": "preference", "rm": "preference", "kto": "kto"}
    rows = [{"source": "pvc://models/rows", "format": formats.get(spec.get("stage", ""), "openai")}]
    phase, reason, _, message = outcome(job(**{**spec, "datasets": rows}), among(SFT, other("rm", stage)))
    if fits:
        assert (phase, reason) == ("Pending", "WaitingForJob")
    else:
        assert (phase, reason) == ("Failed", "InvalidSpec")
        assert f"rm is of stage {stage}" in message


def test_models_that_work_together_must_have_the_same_tokenizer() -> None:
    other_words = among(SFT, succeeded("rm", "rm", tokenizer="sha256:other"))
    phase, reason, _, message = outcome(job(**PPO), other_words)
    assert (phase, reason) == ("Failed", "InvalidSpec")
    assert "tokenizers of job sft (model.fromJob) and job rm (ppo.rewardModel.fromJob) differ" in message
    assert step(job(**PPO), among(SFT, succeeded("rm", "rm", tokenizer=None))).status.references, "it isn't known"
    dpo: dict[str, Any] = {
        "stage": "dpo",
        "model": {"fromJob": "sft", "newTokens": ["<one>"]},
        "dpo": {"reference": {"fromJob": "old"}},
        "datasets": [{"source": "pvc://models/rows", "format": "preference"}],
    }
    knows_new = among(SFT, succeeded("old", tokenizer="sha256:with <one>"))
    assert step(job(**dpo), knows_new).status.references, "the pods know which words the model has then"


def test_adapters_of_a_changed_base_model_do_not_fit_together() -> None:
    sft = succeeded("sft", base="hf://org/base", baseDigest="sha256:then")
    now = succeeded("rm", "rm", base="hf://org/base", baseDigest="sha256:now")
    phase, reason, _, message = outcome(job(**PPO), among(sft, now))
    assert (phase, reason) == ("Failed", "InvalidSpec")
    assert "made adapters for hf://org/base, which changed between them" in message
    elsewhere = succeeded("rm", "rm", base="hf://org/other", baseDigest="sha256:now")
    assert step(job(**PPO), among(sft, elsewhere)).status.references


def test_an_artifact_that_is_deleted_with_its_job_is_invalid_before_it_exists() -> None:
    sft = other("sft", workspace={"claim": {"size": "1Gi", "accessMode": "ReadWriteMany"}, "retain": False})
    phase, reason, _, message = outcome(job(**FROM_SFT), among(sft))
    assert (phase, reason) == ("Failed", "InvalidSpec")
    assert "workspace.retain false" in message


def test_an_artifact_on_a_claim_that_is_deleted_with_a_third_job_is_invalid() -> None:
    claims = {"base-workspace": ClaimView(("ReadWriteMany",), owner="base")}
    for status in ({}, over("Succeeded", artifact=artifact("sft"))):
        sft = other("sft", status=status, workspace={"claimName": "base-workspace"})
        phase, reason, _, message = outcome(job(**FROM_SFT), among(sft, claims=claims))
        assert (phase, reason) == ("Failed", "InvalidSpec")
        assert "claim base-workspace, which is deleted with job base" in message


def test_an_artifact_whose_claim_is_gone_fails_the_job() -> None:
    phase, reason, _, message = outcome(job(**FROM_SFT), among(succeeded("sft"), claims={}))
    assert (phase, reason) == ("Failed", "DependencyFailed")
    assert "job sft (model.fromJob) has Succeeded, but claim workspace, which held its artifact, is gone" in message
    assert outcome(job(**FROM_SFT), among(other("sft"), claims={}))[1] == "WaitingForJob", "it may yet be made"


ONCE, SHARED = ClaimView(("ReadWriteOnce",)), ClaimView(("ReadWriteMany",))
CLAIM: dict[str, Any] = {"claim": {"size": "1Gi"}}


@pytest.mark.parametrize(
    ("theirs", "modes", "own", "fits"),
    [
        ({"claimName": "workspace"}, {}, {"claimName": "workspace"}, True),
        ({"claimName": "theirs"}, {"theirs": SHARED}, {"claimName": "workspace"}, True),
        ({"claimName": "theirs"}, {"theirs": ONCE}, {"claimName": "workspace"}, False),
        ({"claimName": "theirs"}, {"theirs": ClaimView(("ReadWriteOncePod",))}, {"claimName": "workspace"}, False),
        ({"claimName": "theirs"}, {}, {"claimName": "workspace"}, True),  # not there yet: nothing to say
        (CLAIM, {}, {"claimName": "sft-workspace"}, True),
        (CLAIM, {}, CLAIM, False),
        (CLAIM, {"sft-workspace": SHARED}, CLAIM, True),  # the volume that it got can do more than was asked
        ({"claim": {"size": "1Gi", "accessMode": "ReadWriteMany"}}, {}, CLAIM, True),
    ],
)
def test_the_pods_must_be_able_to_mount_an_artifact_beside_their_workspace(
    theirs: dict[str, Any], modes: dict[str, Any], own: dict[str, Any], fits: bool
) -> None:
    view = job(**FROM_SFT, workspace=own)
    phase, reason, accepted, message = outcome(view, among(other("sft", workspace=theirs), claims=modes))
    if fits:
        assert (phase, reason) == ("Pending", "WaitingForJob")
        return
    assert (phase, reason, accepted) == ("Pending", "WorkspaceNotShareable", "False")
    assert "Name the same claim in both jobs" in message
    sft = other("sft", status=over("Succeeded", artifact=artifact("sft")), workspace=theirs)
    fixed = among(sft, claims={"theirs": SHARED, "sft-workspace": SHARED})
    assert step(view, fixed).status.references, "a claim can be recreated"


def test_a_final_failure_is_reported_before_a_wait() -> None:
    elsewhere = other("sft", workspace=CLAIM)
    assert outcome(job(**PPO), among(elsewhere))[1] == "WorkspaceNotShareable"
    assert outcome(job(**PPO), among(elsewhere, other("rm", "rm", over("Failed"))))[1] == "DependencyFailed"


def test_an_invalid_batch_size_is_reported_while_the_job_waits() -> None:
    view = job(**FROM_SFT, training={"epochs": 1, "globalBatchSize": 6}, resources={"gpusPerNode": 4})
    assert outcome(view, among())[:2] == ("Failed", "InvalidSpec")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            {"model": {"fromJob": "sft", "trustRemoteCode": True}},
            "does not let jobs run code from a model",
        ),
        ({"datasets": [{"source": "pvc://d/" + "x" * 1000, "format": "openai"}] * 64}, "at most 65536 fit"),
    ],
)
def test_an_error_that_no_artifact_can_cure_is_reported_while_the_job_waits(spec: dict[str, Any], says: str) -> None:
    phase, reason, _, message = outcome(job(**{**FROM_SFT, **spec}), among())
    assert (phase, reason) == ("Failed", "InvalidSpec")
    assert says in message


PAIRS = [{"source": "pvc://models/pairs.jsonl", "format": "preference"}]
STACKED: dict[str, Any] = {"adapter": {"source": "pvc://models/adapter", "mode": "merge"}}
FIXED = {"use": "model", "job": "first", "uid": "1", "stage": "sft", "artifact": artifact("first")}
RM_ON_ADAPTER = other("sft", "rm", {"references": [FIXED]}, model={"fromJob": "first"}, datasets=PAIRS)


@pytest.mark.parametrize(
    ("sft", "spec", "says"),
    [
        (other("sft", tuning=STACKED), {}, "sft makes an adapter that needs an earlier adapter"),
        (other("sft", tuning=STACKED, output={"merge": True}), {}, ""),
        (other("sft", tuning={"method": "full"}), {"tuning": {"adapter": {"mode": "merge"}}}, "makes a whole model"),
        (other("sft", output={"merge": True}), {"tuning": {"adapter": {"mode": "merge"}}}, "makes a whole model"),
        (other("sft"), {"tuning": {"adapter": {"mode": "merge"}}}, ""),
        (
            other("sft"),
            {"stage": "rm", "datasets": PAIRS, "tuning": {"adapter": {"mode": "continue"}}},
            "sft makes no reward model, so its adapter cannot be continued",
        ),
        (RM_ON_ADAPTER, {"stage": "rm", "datasets": PAIRS}, "sft makes an adapter that needs an earlier adapter"),
        (replace(RM_ON_ADAPTER, status={}), {"stage": "rm", "datasets": PAIRS}, ""),  # it isn't known yet
        (other("sft", "no such stage"), {}, ""),  # that job says itself what is wrong with it
    ],
)
def test_the_kind_of_an_artifact_is_known_before_it_exists(sft: JobView, spec: dict[str, Any], says: str) -> None:
    phase, reason, _, message = outcome(job(**{**FROM_SFT, **spec}), among(sft))
    assert (phase, reason) == (("Failed", "InvalidSpec") if says else ("Pending", "WaitingForJob"))
    assert says in message


def test_a_job_cannot_start_from_an_adapter_on_an_adapter() -> None:
    stacked = other("sft", status=over("Succeeded", artifact=artifact("sft", baseAdapter=True)))
    phase, reason, _, message = outcome(job(**FROM_SFT), among(stacked))
    assert (phase, reason) == ("Failed", "InvalidSpec")
    assert "output.merge" in message


def test_a_cycle_is_reported_and_fails() -> None:
    phase, reason, accepted, message = outcome(job(**FROM_SFT), among(other("sft"), cycle=("demo", "sft", "demo")))
    assert (phase, reason, accepted) == ("Failed", "InvalidSpec", "False")
    assert "demo -> sft -> demo" in message
