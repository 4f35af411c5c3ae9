"""Jobs that use what other jobs make: what they wait for, what they never can, and what is fixed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.chaining import from_jobs
from finetune_api.contract import ResolvedJob, claim_name
from finetune_api.status import Resolved
from finetune_operator.observed import ClaimView, Fixed, JobView, Observed
from finetune_operator.plan import Create
from finetune_operator.plan.acceptance import typed
from finetune_operator.plan.references import ring

from tests.unit.operator.make import (
    SETTINGS,
    among,
    artifact,
    batch,
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


def outcome(view: JobView, observed: Observed) -> tuple[str, str, str, str]:
    """Phase, reason, value of the condition Accepted, and message; nothing may have been begun."""
    planned = step(view, observed)
    assert planned.step is None
    status = planned.status
    assert not status.prepare_attempts
    assert not status.references
    [accepted] = [c for c in status.conditions or [] if c.type == "Accepted"]
    assert (accepted.reason, accepted.message) == (status.reason, status.message)
    return str(status.phase), str(status.reason), accepted.status, str(status.message)


def test_what_the_others_made_is_fixed_with_acceptance_before_any_job_is_made() -> None:
    first = step(job(**PPO), among(SFT, RM))
    assert first.step is None
    assert [(one.use, one.job, one.uid, one.stage) for one in first.status.references or []] == [
        ("model", "sft", "uid-of-sft", "sft"),
        ("reference", "sft", "uid-of-sft", "sft"),
        ("rewardModel", "rm", "uid-of-rm", "rm"),
    ]
    assert [one.artifact.digest for one in first.status.references or []] == ["sha256:sft", "sha256:sft", "sha256:rm"]
    second = step(with_status(job(**PPO), first))
    assert isinstance(second.step, Create)
    annotations = second.step.children[-1]["spec"]["template"]["metadata"]["annotations"]
    resolved = ResolvedJob.model_validate_json(annotations["finetune-operator.io/resolved-job"])
    assert resolved.references == first.status.references
    assert resolved.model.source == "pvc://models/base"
    assert resolved.tuning.adapter is not None
    assert resolved.tuning.adapter.source == artifact("sft")["uri"]


@pytest.mark.parametrize("now", [(), (succeeded("sft", digest="sha256:new"), other("rm", "rm", over("Failed")))])
def test_once_fixed_nothing_that_becomes_of_the_others_matters(now: tuple[JobView, ...]) -> None:
    accepted = with_status(job(**PPO), step(job(**PPO), among(SFT, RM)))
    planned = step(accepted, replace(among(*now), batches=(batch(kind="prepare"),), pods=(running(kind="prepare"),)))
    assert planned.status.phase == "Preparing"
    assert planned.status.to_dict()["references"] == accepted.status["references"]


def test_a_wiped_status_takes_what_was_fixed_from_the_job_that_runs() -> None:
    """The others may be gone by then, made anew, or Failed; and the operator may be a newer one."""
    accepted = with_status(job(**PPO), step(job(**PPO), among(SFT, RM)))
    references = step(accepted).status.references or []
    resolved = Resolved(image="registry.example/older", contract=2, digest="sha256:older")
    seen = replace(
        among(succeeded("sft", digest="sha256:new"), other("rm", "rm", over("Failed"))),
        batches=(batch(2, "prepare"),),
        fixed=Fixed(references, resolved),
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
    "not there": (None, "which is not there: create it"),
    "being deleted": (replace(SFT, deleting=True), "which is being deleted: create it anew once it is gone"),
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
def test_it_waits_and_says_for_whom(case: str) -> None:
    sft, doing = WAITING[case]
    phase, reason, accepted, message = outcome(job(**FROM_SFT), among(*([sft] if sft else [])))
    assert (phase, reason, accepted) == ("Pending", "WaitingForJob", "Unknown")
    assert message.startswith(f"Waiting for job sft (model.fromJob), {doing}")


def test_it_names_all_that_it_waits_for_but_not_what_is_there() -> None:
    ppo = {**PPO, "ppo": {"rewardModel": {"fromJob": "rm"}, "reference": {"fromJob": "old"}}}
    message = outcome(job(**ppo), among(SFT, other("rm", "rm")))[3]
    assert "job rm (ppo.rewardModel.fromJob), which is Pending." in message
    assert "job old (ppo.reference.fromJob), which is not there" in message
    assert "job sft" not in message


def test_waiting_writes_nothing_new_while_nothing_changes() -> None:
    planned = step(job(**FROM_SFT), among(other("sft")))
    again = step(with_status(job(**FROM_SFT), planned), among(other("sft")), after=1e5)
    assert (again.status, again.step) == (planned.status, None)


def test_what_fails_fails_what_waits_for_it_with_its_words() -> None:
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
def test_a_job_of_the_wrong_stage_is_refused_before_it_has_ended(spec: dict[str, Any], stage: str, fits: bool) -> None:
    formats = {"dpo": "preference", "rm": "preference", "kto": "kto"}
    rows = [{"source": "pvc://models/rows", "format": formats.get(spec.get("stage", ""), "openai")}]
    phase, reason, _, message = outcome(job(**{**spec, "datasets": rows}), among(SFT, other("rm", stage)))
    if fits:
        assert (phase, reason) == ("Pending", "WaitingForJob")
    else:
        assert (phase, reason) == ("Failed", "InvalidSpec")
        assert f"rm is of stage {stage}" in message


def test_models_that_work_together_must_read_alike() -> None:
    other_words = among(SFT, succeeded("rm", "rm", tokenizer="sha256:other"))
    phase, reason, _, message = outcome(job(**PPO), other_words)
    assert (phase, reason) == ("Failed", "InvalidSpec")
    assert "tokenizer of job rm (ppo.rewardModel.fromJob) is not that of job sft (model.fromJob)" in message
    assert step(job(**PPO), among(SFT, succeeded("rm", "rm", tokenizer=None))).status.references, "it isn't known"
    dpo: dict[str, Any] = {
        "stage": "dpo",
        "model": {"fromJob": "sft", "newTokens": ["<one>"]},
        "dpo": {"reference": {"fromJob": "old"}},
        "datasets": [{"source": "pvc://models/rows", "format": "preference"}],
    }
    knows_new = among(SFT, succeeded("old", tokenizer="sha256:with <one>"))
    assert step(job(**dpo), knows_new).status.references, "the pods know which words the model has then"


def test_adapters_of_a_base_that_has_changed_do_not_go_together() -> None:
    sft = succeeded("sft", base="hf://org/base", baseDigest="sha256:then")
    now = succeeded("rm", "rm", base="hf://org/base", baseDigest="sha256:now")
    phase, reason, _, message = outcome(job(**PPO), among(sft, now))
    assert (phase, reason) == ("Failed", "InvalidSpec")
    assert "made adapters for hf://org/base, which changed between them" in message
    elsewhere = succeeded("rm", "rm", base="hf://org/other", baseDigest="sha256:now")
    assert step(job(**PPO), among(sft, elsewhere)).status.references


def test_an_artifact_that_goes_with_its_job_is_refused_before_it_is_made() -> None:
    sft = other("sft", workspace={"claim": {"size": "1Gi", "accessMode": "ReadWriteMany"}, "retain": False})
    phase, reason, _, message = outcome(job(**FROM_SFT), among(sft))
    assert (phase, reason) == ("Failed", "InvalidSpec")
    assert "workspace.retain false" in message


def test_an_artifact_on_a_claim_that_goes_with_a_third_job_is_refused() -> None:
    claims = {"base-workspace": ClaimView(("ReadWriteMany",), owner="base")}
    for status in ({}, over("Succeeded", artifact=artifact("sft"))):
        sft = other("sft", status=status, workspace={"claimName": "base-workspace"})
        phase, reason, _, message = outcome(job(**FROM_SFT), among(sft, claims=claims))
        assert (phase, reason) == ("Failed", "InvalidSpec")
        assert "claim base-workspace, which is deleted with job base" in message


def test_an_artifact_whose_claim_is_gone_will_not_come_back() -> None:
    phase, reason, _, message = outcome(job(**FROM_SFT), among(succeeded("sft"), claims={}))
    assert (phase, reason) == ("Failed", "DependencyFailed")
    assert "job sft (model.fromJob) has Succeeded, but claim work, on which it kept what it made, is gone" in message
    assert outcome(job(**FROM_SFT), among(other("sft"), claims={}))[1] == "WaitingForJob", "it may yet be made"


ONCE, SHARED = ClaimView(("ReadWriteOnce",)), ClaimView(("ReadWriteMany",))
CLAIM: dict[str, Any] = {"claim": {"size": "1Gi"}}


@pytest.mark.parametrize(
    ("theirs", "modes", "own", "fits"),
    [
        ({"claimName": "work"}, {}, {"claimName": "work"}, True),
        ({"claimName": "theirs"}, {"theirs": SHARED}, {"claimName": "work"}, True),
        ({"claimName": "theirs"}, {"theirs": ONCE}, {"claimName": "work"}, False),
        ({"claimName": "theirs"}, {"theirs": ClaimView(("ReadWriteOncePod",))}, {"claimName": "work"}, False),
        ({"claimName": "theirs"}, {}, {"claimName": "work"}, True),  # not there yet: nothing to say
        (CLAIM, {}, {"claimName": "sft-workspace"}, True),
        (CLAIM, {}, CLAIM, False),
        (CLAIM, {"sft-workspace": SHARED}, CLAIM, True),  # the volume that it got can do more than was asked
        ({"claim": {"size": "1Gi", "accessMode": "ReadWriteMany"}}, {}, CLAIM, True),
    ],
)
def test_an_artifact_must_be_where_the_pods_can_mount_it_beside_their_workspace(
    theirs: dict[str, Any], modes: dict[str, Any], own: dict[str, Any], fits: bool
) -> None:
    view = job(**FROM_SFT, workspace=own)
    phase, reason, accepted, message = outcome(view, among(other("sft", workspace=theirs), claims=modes))
    if fits:
        assert (phase, reason) == ("Pending", "WaitingForJob")
        return
    assert (phase, reason, accepted) == ("Pending", "WorkspaceNotShareable", "False")
    assert "let both jobs name one claim" in message
    sft = other("sft", status=over("Succeeded", artifact=artifact("sft")), workspace=theirs)
    mended = among(sft, claims={"theirs": SHARED, "sft-workspace": SHARED})
    assert step(view, mended).status.references, "a claim can be made anew"


def test_what_can_never_be_is_said_before_what_may_yet_come() -> None:
    elsewhere = other("sft", workspace=CLAIM)
    assert outcome(job(**PPO), among(elsewhere))[1] == "WorkspaceNotShareable"
    assert outcome(job(**PPO), among(elsewhere, other("rm", "rm", over("Failed"))))[1] == "DependencyFailed"


def test_numbers_that_do_not_fit_together_are_not_waited_with() -> None:
    view = job(**FROM_SFT, training={"epochs": 1, "globalBatchSize": 6}, resources={"gpusPerNode": 4})
    assert outcome(view, among())[:2] == ("Failed", "InvalidSpec")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"model": {"fromJob": "sft", "trustRemoteCode": True}}, "does not let jobs run a model's own code"),
        ({"datasets": [{"source": "pvc://d/" + "x" * 1000, "format": "openai"}] * 64}, "at most 65536 fit"),
    ],
)
def test_what_is_wrong_whatever_the_others_make_is_not_waited_with(spec: dict[str, Any], says: str) -> None:
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
        (other("sft", tuning=STACKED), {}, "sft makes an adapter that goes on another adapter"),
        (other("sft", tuning=STACKED, output={"merge": True}), {}, ""),
        (other("sft", tuning={"method": "full"}), {"tuning": {"adapter": {"mode": "merge"}}}, "makes a whole model"),
        (other("sft", output={"merge": True}), {"tuning": {"adapter": {"mode": "merge"}}}, "makes a whole model"),
        (other("sft"), {"tuning": {"adapter": {"mode": "merge"}}}, ""),
        (
            other("sft"),
            {"stage": "rm", "datasets": PAIRS, "tuning": {"adapter": {"mode": "continue"}}},
            "sft makes no reward model that could be continued",
        ),
        (RM_ON_ADAPTER, {"stage": "rm", "datasets": PAIRS}, "sft makes an adapter that goes on another adapter"),
        (replace(RM_ON_ADAPTER, status={}), {"stage": "rm", "datasets": PAIRS}, ""),  # it isn't known yet
        (other("sft", "no such stage"), {}, ""),  # that job says itself what is wrong with it
    ],
)
def test_what_a_job_will_make_is_known_before_it_has_made_it(sft: JobView, spec: dict[str, Any], says: str) -> None:
    phase, reason, _, message = outcome(job(**{**FROM_SFT, **spec}), among(sft))
    assert (phase, reason) == (("Failed", "InvalidSpec") if says else ("Pending", "WaitingForJob"))
    assert says in message


def test_an_adapter_on_an_adapter_is_no_model_to_start_from() -> None:
    stacked = other("sft", status=over("Succeeded", artifact=artifact("sft", baseAdapter=True)))
    phase, reason, _, message = outcome(job(**FROM_SFT), among(stacked))
    assert (phase, reason) == ("Failed", "InvalidSpec")
    assert "output.merge" in message


@pytest.mark.parametrize(
    ("waits_for", "found"),
    [
        ({}, ()),
        ({"a": ["b"], "b": ["c"]}, ()),
        ({"a": ["a"]}, ("a", "a")),
        ({"a": ["b"], "b": ["a"]}, ("a", "b", "a")),
        ({"a": ["b", "d"], "b": ["c"], "c": ["a"], "d": ["e"]}, ("a", "b", "c", "a")),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, ()),  # others' ring
    ],
)
def test_rings(waits_for: dict[str, list[str]], found: tuple[str, ...]) -> None:
    assert ring("a", lambda name: waits_for.get(name, [])) == found


def test_a_ring_is_named_and_over() -> None:
    phase, reason, accepted, message = outcome(job(**FROM_SFT), among(other("sft"), ring=("demo", "sft", "demo")))
    assert (phase, reason, accepted) == ("Failed", "InvalidSpec", "False")
    assert "demo -> sft -> demo" in message


@pytest.mark.parametrize("spec", [{}, FROM_SFT, PPO, {"workspace": CLAIM}])
def test_views_know_of_a_spec_what_the_api_knows(spec: dict[str, Any]) -> None:
    view = job(**spec)
    parsed = typed(view, SETTINGS)
    assert view.claim == claim_name("demo", parsed.spec)
    assert view.waits_for == set(from_jobs(parsed.spec).values())
