"""Defaults that depend on other fields, which a schema cannot express. All of them are here.

Called by `finetune_api.contract.resolve`, and by the operator before it waits for the jobs that a spec names, to check
the batch sizes early. Raises ValueError with a message for the user if batch sizes and GPUs do not fit together.
"""

from typing import Any, NamedTuple

from finetune_api.spec import FineTuneJobSpec
from finetune_api.stages import DpoSpec, KtoSpec, PpoSpec, RmSpec
from finetune_api.training import TrainingSpec
from finetune_api.tuning import FreezeSpec, LoraSpec, QuantizationSpec, TuningSpec

LEARNING_RATE = {"lora": 1e-4, "qlora": 1e-4, "freeze": 1e-5, "full": 1e-5}
PREFERENCE_LEARNING_RATE = {"lora": 5e-6, "qlora": 5e-6, "freeze": 5e-7, "full": 5e-7}
"""Learning rates of the stages that keep a tuned model close to a reference model."""
PREFERENCE_STAGES = ("dpo", "kto", "ppo")
MICRO_BATCHES = (4, 2, 1)
ROLLOUT_MICRO_BATCHES = 4
"""Micro-batches that a rollout, or an evaluation of answers, generates at once. More rows fit, since no activations are
kept for a backward pass."""


class Defaulted(NamedTuple):
    """The sections that have such defaults. Only the section of the job's stage is set among the last four."""

    tuning: TuningSpec
    training: TrainingSpec
    rm: RmSpec | None
    dpo: DpoSpec | None
    kto: KtoSpec | None
    ppo: PpoSpec | None


def apply_defaults(spec: FineTuneJobSpec) -> Defaulted:
    """The sections of the spec with every default."""
    tuning = _tuning(spec.tuning)
    rates = PREFERENCE_LEARNING_RATE if spec.stage in PREFERENCE_STAGES else LEARNING_RATE
    training = spec.training
    if training.learning_rate is None:
        training = training.model_copy(update={"learning_rate": rates[tuning.method]})
    if training.packing is None:
        training = training.model_copy(update={"packing": "wrapped" if spec.stage == "pt" else "none"})
    # Neither is below 1 in a job that is accepted. Jobs that others wrote are refused with better words than ours here.
    ranks = max(1, spec.resources.nodes) * max(1, spec.resources.gpus_per_node)
    micro = _micro_batch_size(training, ranks)
    return Defaulted(
        tuning=tuning,
        training=training.model_copy(update={"micro_batch_size": micro}),
        rm=(spec.rm or RmSpec()) if spec.stage == "rm" else None,
        dpo=(spec.dpo or DpoSpec()) if spec.stage == "dpo" else None,
        kto=(spec.kto or KtoSpec()) if spec.stage == "kto" else None,
        ppo=_ppo(spec.ppo, training, micro, ranks) if spec.ppo is not None else None,
    )


def _micro_batch_size(training: TrainingSpec, ranks: int) -> int | None:
    """None if the job sets microBatchTokens."""
    share, rest = divmod(training.global_batch_size, ranks)
    if rest:
        raise ValueError(
            f"training.globalBatchSize is {training.global_batch_size}, which {ranks} GPUs cannot share evenly: use a"
            f" multiple of {ranks}"
        )
    if training.micro_batch_tokens is not None:
        return None
    micro = training.micro_batch_size or next(size for size in MICRO_BATCHES if share % size == 0)
    if share % micro:
        raise ValueError(
            f"training.microBatchSize is {micro}, but each of {ranks} GPUs gets {share} rows of a global batch of"
            f" {training.global_batch_size}: use a divisor of {share}"
        )
    return micro


def _ppo(ppo: PpoSpec, training: TrainingSpec, micro: int | None, ranks: int) -> PpoSpec:
    rollout = ppo.rollout_batch_size or training.global_batch_size
    if micro is None:  # rows of the greatest length
        micro = max(1, (training.micro_batch_tokens or 1) // training.cutoff_length)
    micro_batch = ppo.rollout_micro_batch_size or ROLLOUT_MICRO_BATCHES * micro
    # The last batch of a rank's share may be smaller, so the rollout micro-batch need not divide the share.
    return ppo.model_copy(
        update={"rollout_batch_size": rollout, "rollout_micro_batch_size": min(micro_batch, rollout // ranks)}
    )


def _tuning(tuning: TuningSpec) -> TuningSpec:
    """The tuning section with the subsections that the method reads."""
    sections: dict[str, Any] = {}
    continued = tuning.adapter is not None and tuning.adapter.mode == "continue"
    if tuning.method in ("lora", "qlora") and not continued:
        lora = tuning.lora or LoraSpec()
        alpha = lora.alpha if lora.alpha is not None else 2 * lora.rank
        sections["lora"] = lora.model_copy(update={"alpha": alpha})
    if tuning.method == "qlora":
        sections["quantization"] = tuning.quantization or QuantizationSpec()
    if tuning.method == "freeze":
        sections["freeze"] = tuning.freeze or FreezeSpec()
    return tuning.model_copy(update=sections)
