"""Jobs that use artifacts of other jobs: the resolved job, and the artifacts that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.chaining import from_jobs
from finetune_api.contract import ResolvedJob, resolve, source_of
from finetune_api.status import Artifact, Reference
from pydantic import ValidationError

from tests.unit.api.make import PAIRS, job

BASE, ARTIFACT = "hf://org/base", "pvc://first-workspace/jobs/first/artifact"


def reference(use: Any = "model", stage: str = "sft", job: str = "first", **facts: Any) -> Reference:
    """The artifact of a job: an adapter, unless `facts` say otherwise."""
    artifact: dict[str, Any] = {
        "uri": ARTIFACT,
        "kind": "adapter",
        "digest": "sha256:1",
        "size_bytes": 1,
        "base": BASE,
    } | facts
    return Reference(use=use, job=job, uid="1", stage=stage, artifact=Artifact(**artifact))


def resolved_after(artifact: Reference, **changes: Any) -> ResolvedJob:
    """A job that starts from job first, resolved with that job's artifact."""
    follower = job(**({"model": {"fromJob": "first"}} | changes))
    return resolve(follower, references=[artifact], allow_remote_code=True)


def test_a_job_starts_from_a_whole_model() -> None:
    resolved = resolved_after(reference(kind="model", base=None))
    assert resolved.model.source == ARTIFACT
    assert resolved.tuning.adapter is None
    assert resolved.tuning.lora is not None
    assert ResolvedJob.model_validate(resolved.to_dict()) == resolved


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({}, "continue"),
        ({"tuning": {"method": "qlora"}}, "continue"),
        ({"tuning": {"lora": {"rank": 4}}}, "merge"),
        ({"tuning": {"method": "full"}}, "merge"),
        ({"tuning": {"adapter": {"mode": "merge"}}}, "merge"),
        ({"stage": "dpo", "datasets": PAIRS}, "continue"),
        ({"stage": "rm", "datasets": PAIRS}, "merge"),
    ],
)
def test_a_job_continues_or_merges_an_adapter(changes: dict[str, Any], mode: str) -> None:
    resolved = resolved_after(reference(), **changes)
    assert resolved.model.source == BASE
    assert resolved.tuning.adapter is not None
    assert resolved.tuning.adapter.source == ARTIFACT
    assert resolved.tuning.adapter.mode == mode
    fresh = resolved.tuning.method in ("lora", "qlora") and mode == "merge"
    assert (resolved.tuning.lora is not None) == fresh


def test_stage_rm_continues_the_adapter_of_a_reward_model() -> None:
    resolved = resolved_after(reference(stage="rm"), stage="rm", datasets=PAIRS)
    assert resolved.tuning.adapter is not None
    assert resolved.tuning.adapter.mode == "continue"


@pytest.mark.parametrize(
    ("artifact", "changes", "says"),
    [
        (reference(base_adapter=True), {}, "set output.merge in job first"),
        (reference(), {"model": {"fromJob": "first", "trustRemoteCode": True}}, "commit of 40 digits"),
        (reference(base=None), {}, "does not name the base model of its adapter"),
        (reference(stage="rm"), {}, "model.fromJob: first is of stage rm"),
        (
            reference(kind="model"),
            {"tuning": {"adapter": {"mode": "merge"}}},
            "first makes a whole model, not an adapter",
        ),
        (reference(), {"stage": "rm", "datasets": PAIRS, "tuning": {"adapter": {"mode": "continue"}}}, "use merge"),
        (reference(job="other"), {}, "model.fromJob: job first has no artifact yet"),
        (reference(use="reference"), {}, "model.fromJob: job first has no artifact yet"),
    ],
)
def test_artifacts_that_do_not_fit_are_refused(artifact: Reference, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        resolved_after(artifact, **changes)


PPO = {"rewardModel": {"fromJob": "scores"}, "reference": {"fromJob": "first"}}


def test_reference_model_and_reward_model_come_from_jobs() -> None:
    named = job(stage="ppo", ppo=PPO)
    assert from_jobs(named.spec) == {"reference": "first", "rewardModel": "scores"}
    reward = reference(
        "rewardModel", "rm", "scores", uri="pvc://scores-workspace/jobs/scores/artifact", base_adapter=True
    )
    resolved = resolve(named, references=[reference("reference"), reward])
    assert source_of(resolved, "reference") == ARTIFACT
    assert source_of(resolved, "rewardModel") == reward.artifact.uri
    assert resolved.model.source == "pvc://models/base"
    with pytest.raises(ValueError, match="scores is of stage sft: name the job of a reward model"):
        resolve(named, references=[reference("reference"), reference("rewardModel", "sft", "scores")])
    with pytest.raises(ValueError, match=r"ppo\.reference\.fromJob: first is of stage rm"):
        resolve(named, references=[reference("reference", "rm"), reward])


def test_reference_model_and_reward_model_come_from_sources() -> None:
    served = job(stage="ppo", ppo={"rewardModel": {"http": {"url": "https://rewards"}}})
    assert from_jobs(served.spec) == {}
    assert source_of(resolve(served), "rewardModel") is None
    assert source_of(resolve(served), "reference") is None
    named = job(stage="dpo", datasets=PAIRS, dpo={"reference": {"source": BASE}})
    assert source_of(resolve(named), "reference") == BASE
    assert source_of(resolve(job()), "reference") is None


def test_the_digest_depends_on_the_digest_of_an_artifact_not_on_its_place_or_job() -> None:
    elsewhere = reference(uri="pvc://other/jobs/second/artifact", job="second")
    moved = resolve(job(model={"fromJob": "second"}), references=[elsewhere])
    assert moved.digest == resolved_after(reference()).digest
    assert resolved_after(reference(digest="sha256:2")).digest != resolved_after(reference()).digest
    named = job(stage="ppo", ppo={**PPO, "reference": None})
    first, second = (
        resolve(named, references=[reference("rewardModel", "rm", "scores", digest=d)]) for d in ("1", "2")
    )
    assert first.digest != second.digest


def test_an_earlier_adapter_comes_from_a_source_or_from_the_job() -> None:
    with pytest.raises(ValidationError, match=r"model\.fromJob brings its own adapter"):
        job(tuning={"adapter": {"mode": "merge"}})
    with pytest.raises(ValidationError, match=r"model\.fromJob brings its own adapter"):
        job(model={"fromJob": "first"}, tuning={"adapter": {"source": ARTIFACT}})
