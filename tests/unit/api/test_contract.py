"""The resolved job: what the operator and the installation add, the contract's version, and the job digest."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.contract import CONTRACT, CONTRACTS_ACCEPTED, FIRST_CONTRACT, ResolvedJob, resolve

from tests.unit.api.make import PAIRS, REWARD, job


def test_gpu_memory_comes_from_the_spec_before_the_nodes() -> None:
    assert resolve(job()).runtime.gpu_memory_bytes is None
    assert resolve(job(), gpu_memory_bytes=5).runtime.gpu_memory_bytes == 5
    named = job(resources={"gpuMemory": "80Gi"})
    assert resolve(named, gpu_memory_bytes=5).runtime.gpu_memory_bytes == 80 * 2**30


def test_the_workspace_is_the_claim_of_the_user_or_of_the_operator() -> None:
    assert resolve(job()).workspace_claim == "work"
    assert resolve(job(workspace={"claim": {"size": "1Gi"}})).workspace_claim == "a-workspace"


def test_remote_code_needs_permission_of_the_installation() -> None:
    own = job(model={"source": f"hf://org/name@{'0' * 40}", "trustRemoteCode": True})
    with pytest.raises(ValueError, match="allowRemoteCode"):
        resolve(own)
    assert resolve(own, allow_remote_code=True).runtime.allow_remote_code


def test_the_trainer_accepts_its_own_contract_and_the_contract_before_it() -> None:
    """The first release had contract 3. Jobs that it accepted continue."""
    assert CONTRACTS_ACCEPTED == (FIRST_CONTRACT, CONTRACT) == (3, 4)
    assert ResolvedJob.model_validate(resolve(job()).to_dict()) == resolve(job())


DECISIVE = [
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
OPERATIONAL = [
    {"resources": {"cpu": 1, "memory": "1Gi", "gpusPerNode": 4}},
    {"checkpoints": {"everySteps": 3}},
    {"backoffLimit": 0},
    {"training": {"epochs": 1, "microBatchSize": 1}},
    {"training": {"epochs": 1, "recompute": "layers"}},
    {"training": {"epochs": 1, "gradientCheckpointing": True}},
    {"training": {"epochs": 1, "microBatchTokens": 4096}},
    {"tuning": {"method": "lora", "lora": {"rank": 8, "alpha": 16}}},
    {"output": {"uri": "s3://bucket/out"}},
    {"prepare": {"memory": "1Gi"}},
    {"secrets": {"s3": "bucket"}},
    {"template": {"history": "split"}},
    {"reporting": {"tensorboard": True}},
]


@pytest.mark.parametrize("change", DECISIVE)
def test_the_digest_depends_on_settings_that_decide_the_result(change: dict[str, Any]) -> None:
    assert resolve(job(**change)).digest != resolve(job()).digest


@pytest.mark.parametrize("change", OPERATIONAL)
def test_the_digest_depends_on_no_other_settings(change: dict[str, Any]) -> None:
    assert resolve(job(**change)).digest == resolve(job()).digest


def test_the_digest_is_that_of_releases_whose_gradient_checkpointing_had_a_default() -> None:
    """b605ce9 resolved this job to this digest, with gradientCheckpointing true by default."""
    assert resolve(job()).digest == "sha256:e9530251892c671749ea96e6a36fac494e21c91384dec8d5579f8e5ea8603c35"
    off = resolve(job(training={"epochs": 1, "gradientCheckpointing": False})).digest
    assert off == "sha256:244bbd01c587861bf57dbc84c2d9fd3148139962989065dbbc9d0f3e6dce0093"
    assert off == resolve(job(training={"epochs": 1, "gradientCheckpointing": False, "recompute": "none"})).digest


@pytest.mark.parametrize(
    ("training", "recomputed"),
    [
        ({}, "auto"),
        ({"recompute": "layers"}, "layers"),
        ({"gradientCheckpointing": True}, "all"),
        ({"gradientCheckpointing": False}, "none"),
        ({"gradientCheckpointing": True, "recompute": "all"}, "all"),
    ],
)
def test_the_deprecated_name_of_recomputation_means_what_it_meant(training: dict[str, Any], recomputed: str) -> None:
    assert resolve(job(training={"epochs": 1, **training})).training.recomputed == recomputed


def test_the_digest_depends_on_settings_of_the_stage() -> None:
    def digest(**settings: Any) -> str:
        return resolve(job(stage="ppo", datasets=PAIRS, ppo={**REWARD, **settings})).digest

    assert digest(epochs=2) != digest()
    assert digest(rolloutMicroBatchSize=2) == digest()
    service = {"url": "https://rewards"}
    assert digest(rewardModel={"http": service}) != digest()
    assert digest(rewardModel={"http": {**service, "secret": "a"}}) == digest(rewardModel={"http": service})
