"""The memory that a job's stage needs besides its model: other models, a critic, the cache of generated answers.

`memory_check` uses it for the estimate.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from finetune_api.contract import ResolvedJob
from finetune_api.defaults import ROLLOUT_MICRO_BATCHES
from finetune_api.micro_batch import MicroBatch, first_micro_batch
from finetune_api.tuning import TuningSpec

from finetune_trainer.model import base, model_files, weight_shapes
from finetune_trainer.model.base import Kind, Precision
from finetune_trainer.prepare import memory_estimate
from finetune_trainer.prepare.memory_estimate import StageRequirements
from finetune_trainer.prepare.referenced_models import ReferencedModel

WITHOUT_REFERENCE = ("orpo", "simpo")
"""Losses of stage dpo without a reference model."""
NOT_QUANTIZED = TuningSpec(method="lora")


def stage_requirements(
    job: ResolvedJob, referenced: Sequence[ReferencedModel], precision: Precision, longest: int
) -> StageRequirements:
    """``longest``: tokens of a prompt with its answer, if the stage generates answers."""
    by_use = {model.use: model for model in referenced}
    reference, reward = by_use.get("reference"), by_use.get("rewardModel")
    reference_tuning = job.tuning if reference is not None and not _is_merged(reference) else NOT_QUANTIZED
    return StageRequirements(
        kind=base.kind_of(job.stage),
        rows=2 if job.stage in ("rm", "dpo") else 1,
        copy=reference is None and _keeps_copy(job),
        reference=_model_bytes(reference, reference_tuning, precision, "causal") if reference else 0,
        reference_precomputed=job.dpo is not None and job.dpo.precompute_reference,
        reward=_reward_bytes(job, reward, precision) if reward else 0,
        critic=job.ppo is not None,
        answers=_answers(job, longest),
    )


def _answers(job: ResolvedJob, longest: int) -> tuple[int, int]:
    """(answers generated at once, tokens of each with its prompt): rollouts, or evaluations by generation."""
    if job.ppo:
        return job.ppo.rollout_micro_batch_size or 1, longest
    generate = job.evaluation.generate if job.evaluation else None
    if generate is None:
        return 0, 0
    length = longest + generate.max_new_tokens
    return ROLLOUT_MICRO_BATCHES * (first_micro_batch(job.training) or MicroBatch(1)).rows(length), length


def _keeps_copy(job: ResolvedJob) -> bool:
    """Whether a copy of the model at the start of the job is kept as the reference. A new adapter needs no copy,
    because it can be disabled."""
    compares = job.kto or job.ppo or (job.dpo is not None and job.dpo.loss not in WITHOUT_REFERENCE)
    if not compares:
        return False
    tuning = job.tuning
    continued = tuning.adapter is not None and tuning.adapter.mode == "continue"
    pissa = tuning.lora is not None and tuning.lora.init == "pissa"
    return tuning.method in ("full", "freeze") or continued or pissa


def _is_merged(reference: ReferencedModel) -> bool:
    """Whether its adapters are merged into the model, which is not quantized then."""
    return reference.base is not None and (reference.fetched.path / model_files.BASE_ADAPTER).is_dir()


def _reward_bytes(job: ResolvedJob, reward: ReferencedModel, precision: Precision) -> int:
    """Bytes of the reward model. An adapter on the policy's own frozen base shares that base (stage ppo), so only the
    adapter counts."""
    tuning, model = job.tuning, job.model
    same_base = reward.base is not None and reward.base.uri == model.source and not _is_merged(reward)
    merges = tuning.adapter is not None and tuning.adapter.mode == "merge"
    adds_tokens = model.new_tokens or model.new_special_tokens
    shares = tuning.method == "lora" and job.training.parallelism == "ddp" and not merges and not adds_tokens
    if same_base and shares:
        return 4 * _adapter_weights(reward.fetched.path, reward)
    return _model_bytes(reward, NOT_QUANTIZED, precision, "reward")


def _model_bytes(referenced: ReferencedModel, tuning: TuningSpec, precision: Precision, kind: Kind) -> int:
    """Bytes of another model, with the adapter that stays separate on the base of a reward model."""
    model = referenced.model
    config = base.check(
        model.path, model.uri, allow_remote_code=referenced.remote_code, kind=kind, field=referenced.field
    )
    size = memory_estimate.frozen_model_bytes(config, tuning, precision, kind)
    if referenced.base is not None and kind == "reward":
        size += 4 * _adapter_weights(referenced.fetched.path, referenced)
    return size


def _adapter_weights(adapter: Path, referenced: ReferencedModel) -> int:
    shapes = weight_shapes.of_adapter(adapter, referenced.fetched.uri, referenced.field)
    return sum(math.prod(shape) for shape in shapes.values())
