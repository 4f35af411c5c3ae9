"""Defaults that depend on other fields, and batch sizes that do not fit the GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.contract import resolve

from tests.unit.api.make import PAIRS, REWARD, job


def test_defaults_depend_on_other_fields() -> None:
    lora = resolve(job(tuning={"lora": {"rank": 32}}))
    assert lora.tuning.lora is not None
    assert lora.tuning.lora.alpha == 64
    assert lora.training.learning_rate == 1e-4
    assert resolve(job(tuning={"method": "full"})).training.learning_rate == 1e-5
    assert resolve(job()).training.micro_batch_size == 4
    assert resolve(job(training={"epochs": 1, "globalBatchSize": 6})).training.micro_batch_size == 2
    in_tokens = resolve(job(training={"epochs": 1, "microBatchTokens": 4096})).training
    assert (in_tokens.micro_batch_size, in_tokens.micro_batch_tokens) == (None, 4096)
    assert resolve(job()).training.packing == "none"
    text = [{"source": "pvc://models/texts", "format": "text"}]
    assert resolve(job(stage="pt", datasets=text)).training.packing == "wrapped"
    qlora = resolve(job(tuning={"method": "qlora"})).tuning
    assert qlora.quantization is not None
    assert qlora.lora is not None
    adapter = {"source": "pvc://models/adapter"}
    assert resolve(job(tuning={"adapter": adapter})).tuning.lora is None, "the adapter brings its own"


def test_a_job_has_the_section_of_its_stage_only() -> None:
    dpo = resolve(job(stage="dpo", datasets=PAIRS))
    assert dpo.dpo is not None
    assert dpo.dpo.beta == 0.1
    assert (dpo.rm, dpo.kto, dpo.ppo) == (None, None, None)
    assert resolve(job(stage="rm", datasets=PAIRS)).rm is not None
    answers = [{"source": "pvc://models/answers.jsonl", "format": "kto"}]
    assert resolve(job(stage="kto", datasets=answers)).kto is not None
    assert resolve(job()).dpo is None


def test_stages_with_a_reference_model_learn_at_a_twentieth_of_the_rate() -> None:
    def rate(stage: str, method: str, **sections: Any) -> float | None:
        data = {"datasets": PAIRS} | sections
        return resolve(job(stage=stage, tuning={"method": method}, **data)).training.learning_rate

    assert rate("dpo", "lora") == 5e-6
    assert rate("ppo", "full", ppo=REWARD) == 5e-7
    assert rate("rm", "lora") == 1e-4


def test_a_rollout_micro_batch_is_larger_than_a_training_micro_batch() -> None:
    def ppo(gpus: int = 1, **settings: Any) -> tuple[int | None, int | None]:
        resources = {"gpusPerNode": gpus}
        filled = resolve(job(stage="ppo", datasets=PAIRS, ppo={**REWARD, **settings}, resources=resources)).ppo
        assert filled is not None
        return filled.rollout_batch_size, filled.rollout_micro_batch_size

    def by_tokens(tokens: int) -> int | None:
        training = {"epochs": 1, "microBatchTokens": tokens, "cutoffLength": 1024}
        filled = resolve(job(stage="ppo", datasets=PAIRS, ppo=REWARD, training=training)).ppo
        assert filled is not None
        return filled.rollout_micro_batch_size

    assert (by_tokens(512), by_tokens(2048), by_tokens(10**6)) == (4, 8, 16)
    assert ppo() == (16, 16)
    assert ppo(gpus=4) == (16, 4)
    assert ppo(rolloutBatchSize=64) == (64, 16)
    assert ppo(rolloutBatchSize=64, rolloutMicroBatchSize=5) == (64, 5)


def test_batch_sizes_that_do_not_fit_the_gpus_are_refused_with_sizes_that_do() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        resolve(job(training={"epochs": 1, "globalBatchSize": 6}, resources={"gpusPerNode": 4}))
    with pytest.raises(ValueError, match="divisor of 2"):
        resolve(job(training={"epochs": 1, "globalBatchSize": 8, "microBatchSize": 4}, resources={"gpusPerNode": 4}))
