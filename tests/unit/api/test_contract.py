"""Resolution: what is filled in, what the digest hangs on, and what can't be resolved."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.contract import ResolvedJob, resolve
from finetune_api.exit_codes import SEVERITY, ExitCode, strongest
from finetune_api.job import FineTuneJob
from pydantic import ValidationError

SPEC: dict[str, Any] = {
    "stage": "sft",
    "model": {"source": "pvc://models/base"},
    "datasets": [{"source": "pvc://models/train.jsonl", "format": "openai"}],
    "training": {"epochs": 1},
    "workspace": {"claimName": "work"},
}


def job(**changes: Any) -> FineTuneJob:
    spec = {**SPEC, **changes}
    head = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "a"}}
    return FineTuneJob.model_validate({**head, "spec": spec})


def test_defaults_that_hang_on_other_fields() -> None:
    lora = resolve(job(tuning={"lora": {"rank": 32}}))
    assert lora.tuning.lora is not None
    assert lora.tuning.lora.alpha == 64
    assert lora.training.learning_rate == 1e-4
    assert resolve(job(tuning={"method": "full"})).training.learning_rate == 1e-5
    assert resolve(job()).training.micro_batch_size == 4
    assert resolve(job(training={"epochs": 1, "globalBatchSize": 6})).training.micro_batch_size == 2
    assert resolve(job()).training.packing == "none"
    text = [{"source": "pvc://models/texts", "format": "text"}]
    assert resolve(job(stage="pt", datasets=text)).training.packing == "wrapped"
    qlora = resolve(job(tuning={"method": "qlora"})).tuning
    assert qlora.quantization is not None
    assert qlora.lora is not None
    adapter = {"source": "pvc://models/adapter"}
    assert resolve(job(tuning={"adapter": adapter})).tuning.lora is None, "the adapter brings its own"


PAIRS = [{"source": "pvc://models/pairs.jsonl", "format": "preference"}]
REWARD: dict[str, Any] = {"rewardModel": {"source": "pvc://models/reward"}}


def test_a_stages_settings_are_there_and_no_others() -> None:
    dpo = resolve(job(stage="dpo", datasets=PAIRS))
    assert dpo.dpo is not None
    assert dpo.dpo.beta == 0.1
    assert (dpo.rm, dpo.kto, dpo.ppo) == (None, None, None)
    assert resolve(job(stage="rm", datasets=PAIRS)).rm is not None
    answers = [{"source": "pvc://models/answers.jsonl", "format": "kto"}]
    assert resolve(job(stage="kto", datasets=answers)).kto is not None
    assert resolve(job()).dpo is None


def test_stages_that_hold_to_a_reference_learn_at_a_twentieth_of_the_rate() -> None:
    def rate(stage: str, method: str, **sections: Any) -> float | None:
        data = {"datasets": PAIRS} | sections
        return resolve(job(stage=stage, tuning={"method": method}, **data)).training.learning_rate

    assert rate("dpo", "lora") == 5e-6
    assert rate("ppo", "full", ppo=REWARD) == 5e-7
    assert rate("rm", "lora") == 1e-4


def test_rollouts_are_a_batch_answered_in_larger_parts_than_it_is_trained_in() -> None:
    def ppo(gpus: int = 1, **settings: Any) -> tuple[int | None, int | None]:
        resources = {"gpusPerNode": gpus}
        filled = resolve(job(stage="ppo", datasets=PAIRS, ppo={**REWARD, **settings}, resources=resources)).ppo
        assert filled is not None
        return filled.rollout_batch_size, filled.rollout_micro_batch_size

    assert ppo() == (16, 16)
    assert ppo(gpus=4) == (16, 4)
    assert ppo(rolloutBatchSize=64) == (64, 16)
    assert ppo(rolloutBatchSize=64, rolloutMicroBatchSize=5) == (64, 5)


def test_what_is_known_of_the_gpus() -> None:
    assert resolve(job()).runtime.gpu_memory_bytes is None
    assert resolve(job(), gpu_memory_bytes=5).runtime.gpu_memory_bytes == 5
    named = job(resources={"gpuMemory": "80Gi"})
    assert resolve(named, gpu_memory_bytes=5).runtime.gpu_memory_bytes == 80 * 2**30


def test_the_workspaces_claim_is_the_users_or_ours() -> None:
    assert resolve(job()).workspace_claim == "work"
    assert resolve(job(workspace={"claim": {"size": "1Gi"}})).workspace_claim == "a-workspace"


def test_a_models_own_code_needs_the_installations_consent() -> None:
    own = job(model={"source": f"hf://org/name@{'0' * 40}", "trustRemoteCode": True})
    with pytest.raises(ValueError, match="allowRemoteCode"):
        resolve(own)
    assert resolve(own, allow_remote_code=True).runtime.allow_remote_code


def test_a_job_resolved_by_the_release_before_is_read() -> None:
    """Contract 2 had none of the sections and settings that contract 3 brought."""
    old = resolve(job()).to_dict()
    for section in ("reporting", "references"):
        del old[section]
    for setting in ("adamBeta1", "adamBeta2", "adamEpsilon"):
        del old["training"][setting]
    read = ResolvedJob.model_validate(old | {"contract": 2})
    assert read.references == []
    assert read.training.adam_beta2 == 0.999
    assert not read.reporting.tensorboard


DECIDES = [
    {"model": {"source": "pvc://models/other"}},
    {"datasets": [{"source": "pvc://models/other.jsonl", "format": "openai"}]},
    {"tuning": {"method": "full"}},
    {"training": {"epochs": 2}},
    {"training": {"epochs": 1, "packing": "bfd"}},
    {"template": {"name": "chatml"}},
    {"evaluation": {"splitFraction": 0.1}},
    {"output": {"merge": True}},
    {"output": {"weights": "best"}, "evaluation": {"splitFraction": 0.1, "everySteps": 5}},
    {"training": {"epochs": 1, "optimizer": "adafactor"}},
    {"stage": "dpo", "datasets": PAIRS},
]
DECIDES_NOT = [
    {"resources": {"cpu": 1, "memory": "1Gi", "gpusPerNode": 4}},
    {"checkpoints": {"everySteps": 3}},
    {"backoffLimit": 0},
    {"training": {"epochs": 1, "microBatchSize": 1}},
    {"tuning": {"method": "lora", "lora": {"rank": 8, "alpha": 16}}},
    {"output": {"uri": "s3://bucket/out"}},
    {"prepare": {"memory": "1Gi"}},
    {"secrets": {"s3": "bucket"}},
    {"template": {"history": "split"}},
    {"reporting": {"tensorboard": True}},
]


@pytest.mark.parametrize("change", DECIDES)
def test_the_digest_hangs_on_what_decides_the_result(change: dict[str, Any]) -> None:
    assert resolve(job(**change)).digest != resolve(job()).digest


@pytest.mark.parametrize("change", DECIDES_NOT)
def test_and_on_nothing_else(change: dict[str, Any]) -> None:
    assert resolve(job(**change)).digest == resolve(job()).digest


def test_of_a_stages_settings_too() -> None:
    def digest(**settings: Any) -> str:
        return resolve(job(stage="ppo", datasets=PAIRS, ppo={**REWARD, **settings})).digest

    assert digest(epochs=2) != digest()
    assert digest(rolloutMicroBatchSize=2) == digest()
    service = {"url": "https://rewards"}
    assert digest(rewardModel={"http": service}) != digest()
    assert digest(rewardModel={"http": {**service, "secret": "a"}}) == digest(rewardModel={"http": service})


def test_batches_that_do_not_fit_the_gpus_are_refused_with_what_would() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        resolve(job(training={"epochs": 1, "globalBatchSize": 6}, resources={"gpusPerNode": 4}))
    with pytest.raises(ValueError, match="divisor of 2"):
        resolve(job(training={"epochs": 1, "globalBatchSize": 8, "microBatchSize": 4}, resources={"gpusPerNode": 4}))


@pytest.mark.parametrize(
    "bad",
    [
        {"stage": "sfft"},
        {"unknown": 1},
        {"model": {"source": "pvc://models/../etc"}},
        {"model": {"source": "/etc/passwd"}},
        {"model": {"source": "pvc://models"}},
        {"model": {"source": "configmap://models/base"}},
        {"model": {"source": "hf://org/name", "trustRemoteCode": True}},
        {"datasets": [{"source": "pvc://models/a.txt", "format": "text"}]},
        {"training": {"epochs": 1, "packing": "wrapped"}},
        {"tuning": {"lora": {"rank": -1}}},
        {"tuning": {"method": "full", "lora": {"rank": 8}}},
        {"training": {}},
        {"training": {"epochs": 1, "maxSteps": 1}},
        {"resources": {"volumeMounts": [{"name": "x", "mountPath": "/x"}]}},
        {"dpo": {}},
        {"stage": "ppo"},
        {"stage": "ppo", "ppo": {"rewardModel": {}}},
        {"training": {"epochs": 1, "decayRatio": 0.1}},
        {"training": {"epochs": 1, "scheduler": "warmup_stable_decay", "warmupRatio": 0.95}},
        {"training": {"epochs": 1, "schedulerCycles": 3}},
        {"stage": "dpo", "datasets": PAIRS, "dpo": {"loss": "ipo", "ldAlpha": 0.5}},
        {"stage": "dpo", "datasets": PAIRS, "dpo": {"simpoGamma": 1.0}},
        {"stage": "ppo", "datasets": PAIRS, "ppo": dict(REWARD, klCoefficient=0)},
        {"stage": "ppo", "datasets": PAIRS, "ppo": {"rewardModel": {"http": {"url": "http://judge:80o0/score"}}}},
    ],
)
def test_a_laptop_refuses_what_the_api_server_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        job(**bad)


@pytest.mark.parametrize(
    "good",
    [
        {"training": {"epochs": 1, "scheduler": "warmup_stable_decay", "warmupRatio": 0.7, "decayRatio": 0.3}},
        {"training": {"epochs": 1, "scheduler": "cosine_with_restarts", "schedulerCycles": 3}},
        {"training": {"epochs": 1, "scheduler": "polynomial", "minLearningRateRatio": 0.1}},
        {"stage": "dpo", "datasets": PAIRS, "dpo": {"loss": "hinge", "ldAlpha": 0.5}},
        {"stage": "dpo", "datasets": PAIRS, "dpo": {"loss": "simpo", "simpoGamma": 1.0}},
        {"stage": "ppo", "datasets": PAIRS, "ppo": dict(REWARD, klCoefficient=0, klControl="fixed")},
        {"stage": "ppo", "datasets": PAIRS, "ppo": {"rewardModel": {"http": {"url": "http://[::1]:8000/score"}}}},
    ],
)
def test_settings_that_go_together_are_taken(good: dict[str, Any]) -> None:
    assert holds(resolve(job(**good)).to_dict(), {name: value for name, value in good.items() if name != "datasets"})


def holds(whole: Any, part: Any) -> bool:
    """Whether all that ``part`` says stands in ``whole``."""
    if not isinstance(part, dict):
        return bool(whole == part)
    return all(holds(whole[name], value) for name, value in part.items())


def test_the_strongest_code_decides() -> None:
    assert strongest([0, 0]) == 0
    assert strongest([0, 1]) == 1
    assert strongest([1, 70, 75, 65]) == ExitCode.INVALID_DATA
    assert strongest([78, 137]) == 78
    named = {code for group in SEVERITY for code in group}
    assert named == set(ExitCode) - {ExitCode.DONE}
