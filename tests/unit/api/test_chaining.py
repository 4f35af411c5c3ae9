"""Jobs that name other jobs: what the artifact of one is to another, and when it can be nothing."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.chaining import from_jobs
from finetune_api.contract import ResolvedJob, resolve, source_of
from finetune_api.status import Artifact, Reference
from pydantic import ValidationError

from tests.unit.api.test_contract import PAIRS, job

BASE, MADE = "hf://org/base", "pvc://first-workspace/jobs/first/artifact"


def made(use: Any = "model", stage: str = "sft", job: str = "first", **facts: Any) -> Reference:
    """What a job made: an adapter, unless said otherwise."""
    artifact: dict[str, Any] = {
        "uri": MADE,
        "kind": "adapter",
        "digest": "sha256:1",
        "size_bytes": 1,
        "base": BASE,
    } | facts
    return Reference(use=use, job=job, uid="1", stage=stage, artifact=Artifact(**artifact))


def after(reference: Reference, **changes: Any) -> ResolvedJob:
    named = job(**({"model": {"fromJob": "first"}} | changes))
    return resolve(named, references=[reference], allow_remote_code=True)


def test_a_whole_model_is_started_from() -> None:
    resolved = after(made(kind="model", base=None))
    assert resolved.model.source == MADE
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
def test_an_adapter_is_continued_or_merged(changes: dict[str, Any], mode: str) -> None:
    resolved = after(made(), **changes)
    assert resolved.model.source == BASE
    assert resolved.tuning.adapter is not None
    assert resolved.tuning.adapter.source == MADE
    assert resolved.tuning.adapter.mode == mode
    fresh = resolved.tuning.method in ("lora", "qlora") and mode == "merge"
    assert (resolved.tuning.lora is not None) == fresh


def test_a_reward_models_adapter_is_trained_further_as_one() -> None:
    resolved = after(made(stage="rm"), stage="rm", datasets=PAIRS)
    assert resolved.tuning.adapter is not None
    assert resolved.tuning.adapter.mode == "continue"


@pytest.mark.parametrize(
    ("reference", "changes", "says"),
    [
        (made(base_adapter=True), {}, "let that job set output.merge"),
        (made(), {"model": {"fromJob": "first", "trustRemoteCode": True}}, "commit of 40 digits"),
        (made(base=None), {}, "does not say which model its adapter goes on"),
        (made(stage="rm"), {}, "model.fromJob: first is of stage rm"),
        (made(kind="model"), {"tuning": {"adapter": {"mode": "merge"}}}, "first makes a whole model, not an adapter"),
        (made(), {"stage": "rm", "datasets": PAIRS, "tuning": {"adapter": {"mode": "continue"}}}, "use merge"),
        (made(job="other"), {}, "model.fromJob: there is no artifact of first yet"),
        (made(use="reference"), {}, "model.fromJob: there is no artifact of first yet"),
    ],
)
def test_what_a_job_cannot_start_from(reference: Reference, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        after(reference, **changes)


PPO = {"rewardModel": {"fromJob": "scores"}, "reference": {"fromJob": "first"}}


def test_what_a_stage_compares_with_and_is_scored_by() -> None:
    named = job(stage="ppo", ppo=PPO)
    assert from_jobs(named.spec) == {"reference": "first", "rewardModel": "scores"}
    reward = made("rewardModel", "rm", "scores", uri="pvc://scores-workspace/jobs/scores/artifact", base_adapter=True)
    resolved = resolve(named, references=[made("reference"), reward])
    assert source_of(resolved, "reference") == MADE
    assert source_of(resolved, "rewardModel") == reward.artifact.uri
    assert resolved.model.source == "pvc://models/base"
    with pytest.raises(ValueError, match="scores is of stage sft: name the job of a reward model"):
        resolve(named, references=[made("reference"), made("rewardModel", "sft", "scores")])
    with pytest.raises(ValueError, match=r"ppo\.reference\.fromJob: first is of stage rm"):
        resolve(named, references=[made("reference", "rm"), reward])


def test_sources_need_no_job() -> None:
    served = job(stage="ppo", ppo={"rewardModel": {"http": {"url": "https://rewards"}}})
    assert from_jobs(served.spec) == {}
    assert source_of(resolve(served), "rewardModel") is None
    assert source_of(resolve(served), "reference") is None
    named = job(stage="dpo", datasets=PAIRS, dpo={"reference": {"source": BASE}})
    assert source_of(resolve(named), "reference") == BASE
    assert source_of(resolve(job()), "reference") is None


def test_the_digest_hangs_on_what_was_made_not_on_where_or_by_whom() -> None:
    elsewhere = made(uri="pvc://other/jobs/second/artifact", job="second")
    moved = resolve(job(model={"fromJob": "second"}), references=[elsewhere])
    assert moved.digest == after(made()).digest
    assert after(made(digest="sha256:2")).digest != after(made()).digest
    named = job(stage="ppo", ppo={**PPO, "reference": None})
    one, two = (resolve(named, references=[made("rewardModel", "rm", "scores", digest=d)]) for d in ("1", "2"))
    assert one.digest != two.digest


def test_an_earlier_adapter_comes_from_a_source_or_with_the_job() -> None:
    with pytest.raises(ValidationError, match=r"model\.fromJob brings its adapter itself"):
        job(tuning={"adapter": {"mode": "merge"}})
    with pytest.raises(ValidationError, match=r"model\.fromJob brings its adapter itself"):
        job(model={"fromJob": "first"}, tuning={"adapter": {"source": MADE}})
