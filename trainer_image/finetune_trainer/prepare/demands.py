"""What a job's stage needs of a GPU besides its model: other models, a critic, answers to write.

Called by ``prepare.memory``, for the estimate.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from finetune_api.contract import ResolvedJob
from finetune_api.tuning import TuningSpec

from finetune_trainer.model import base, memory, weights
from finetune_trainer.model import folder as model_folder
from finetune_trainer.model.base import Kind, Precision
from finetune_trainer.model.memory import Demands
from finetune_trainer.prepare.others import Other

WITHOUT_REFERENCE = ("orpo", "simpo")
"""Losses of stage dpo that compare with nothing."""
UNQUANTISED = TuningSpec(method="lora")


def of(job: ResolvedJob, more: Sequence[Other], precision: Precision, longest: int) -> Demands:
    """``longest`` is that of a prompt with its answer, where the stage has answers written."""
    named = {one.use: one for one in more}
    reference, reward = named.get("reference"), named.get("rewardModel")
    quantised = job.tuning if reference is not None and not _merged(reference) else UNQUANTISED
    return Demands(
        kind=base.kind_of(job.stage),
        rows=2 if job.stage in ("rm", "dpo") else 1,
        copy=reference is None and _copied(job),
        reference=_size(reference, quantised, precision, "causal") if reference else 0,
        passing=job.dpo is not None and job.dpo.precompute_reference,
        reward=_reward(job, reward, precision) if reward else 0,
        critic=job.ppo is not None,
        answers=(job.ppo.rollout_micro_batch_size or 1, longest) if job.ppo else (0, 0),
    )


def _copied(job: ResolvedJob) -> bool:
    """Whether the model as the job received it is kept beside the one that is trained. A fresh adapter is switched off
    instead."""
    compares = job.kto or job.ppo or (job.dpo is not None and job.dpo.loss not in WITHOUT_REFERENCE)
    if not compares:
        return False
    tuning = job.tuning
    continued = tuning.adapter is not None and tuning.adapter.mode == "continue"
    pissa = tuning.lora is not None and tuning.lora.init == "pissa"
    return tuning.method in ("full", "freeze") or continued or pissa


def _merged(reference: Other) -> bool:
    """Whether its adapters are taken into the model, which then isn't quantised."""
    return reference.base is not None and (reference.got.path / model_folder.BASE_ADAPTER).is_dir()


def _reward(job: ResolvedJob, reward: Other, precision: Precision) -> int:
    """Of an adapter on the policy's own frozen base the adapter alone: `stages.ppo.sharing`."""
    tuning, model = job.tuning, job.model
    same = reward.base is not None and reward.base.uri == model.source and not _merged(reward)
    merges = tuning.adapter is not None and tuning.adapter.mode == "merge"
    grows = model.new_tokens or model.new_special_tokens
    if same and tuning.method == "lora" and job.training.parallelism == "ddp" and not merges and not grows:
        return 4 * _numbers(reward.got.path, reward)
    return _size(reward, UNQUANTISED, precision, "reward")


def _size(other: Other, tuning: TuningSpec, precision: Precision, kind: Kind) -> int:
    """Bytes of another model, with the adapter that stays apart on a reward model's base."""
    model = other.model
    config = base.check(model.path, model.uri, allow_remote_code=other.code, kind=kind, field=other.field)
    size = memory.frozen(config, tuning, precision, kind)
    if other.base is not None and kind == "reward":
        size += 4 * _numbers(other.got.path, other)
    return size


def _numbers(adapter: Path, other: Other) -> int:
    return sum(math.prod(shape) for shape in weights.of_adapter(adapter, other.got.uri, other.field).values())
