"""The defaults that hang on other fields, which a schema can't express. This is their only place.

Called by `finetune_api.contract.resolve`; where a job waits for others, the operator asks here before whether its
numbers fit together. Raises ValueError with a message for the user where they don't.
"""

from typing import Any, NamedTuple

from finetune_api.spec import FineTuneJobSpec
from finetune_api.stages import DpoSpec, KtoSpec, PpoSpec, RmSpec
from finetune_api.training import TrainingSpec
from finetune_api.tuning import FreezeSpec, LoraSpec, QuantizationSpec, TuningSpec

LEARNING_RATE = {"lora": 1e-4, "qlora": 1e-4, "freeze": 1e-5, "full": 1e-5}
GENTLE_LEARNING_RATE = {"lora": 5e-6, "qlora": 5e-6, "freeze": 5e-7, "full": 5e-7}
"""Of the stages that hold a tuned model to a reference."""
GENTLE = ("dpo", "kto", "ppo")
MICRO_BATCHES = (4, 2, 1)
ROLLOUT_MICRO_BATCHES = 4
"""Answering needs no activations for a backward pass, so more rows fit."""


class Filled(NamedTuple):
    """The sections that have such defaults. Of the last four only the stage's own is there, and it always is."""

    tuning: TuningSpec
    training: TrainingSpec
    rm: RmSpec | None
    dpo: DpoSpec | None
    kto: KtoSpec | None
    ppo: PpoSpec | None


def fill_in(spec: FineTuneJobSpec) -> Filled:
    """The spec's sections with every default in."""
    tuning = _tuning(spec.tuning)
    rates = GENTLE_LEARNING_RATE if spec.stage in GENTLE else LEARNING_RATE
    training = spec.training
    if training.learning_rate is None:
        training = training.model_copy(update={"learning_rate": rates[tuning.method]})
    if training.packing is None:
        training = training.model_copy(update={"packing": "wrapped" if spec.stage == "pt" else "none"})
    ranks = spec.resources.nodes * max(1, spec.resources.gpus_per_node)
    micro = _micro_batch(training, ranks)
    return Filled(
        tuning=tuning,
        training=training.model_copy(update={"micro_batch_size": micro}),
        rm=(spec.rm or RmSpec()) if spec.stage == "rm" else None,
        dpo=(spec.dpo or DpoSpec()) if spec.stage == "dpo" else None,
        kto=(spec.kto or KtoSpec()) if spec.stage == "kto" else None,
        ppo=_ppo(spec.ppo, training.global_batch_size, micro, ranks) if spec.ppo is not None else None,
    )


def _micro_batch(training: TrainingSpec, ranks: int) -> int:
    share, rest = divmod(training.global_batch_size, ranks)
    if rest:
        raise ValueError(
            f"training.globalBatchSize is {training.global_batch_size}, which {ranks} GPUs can't share evenly: use a"
            f" multiple of {ranks}"
        )
    micro = training.micro_batch_size or next(size for size in MICRO_BATCHES if share % size == 0)
    if share % micro:
        raise ValueError(
            f"training.microBatchSize is {micro}, but each of {ranks} GPUs gets {share} rows of a global batch of"
            f" {training.global_batch_size}: use a divisor of {share}"
        )
    return micro


def _ppo(ppo: PpoSpec, global_batch: int, micro: int, ranks: int) -> PpoSpec:
    rollout = ppo.rollout_batch_size or global_batch
    at_once = ppo.rollout_micro_batch_size or ROLLOUT_MICRO_BATCHES * micro
    # The last ones of a rank's share may be fewer than the others, so nothing has to divide it.
    return ppo.model_copy(
        update={"rollout_batch_size": rollout, "rollout_micro_batch_size": min(at_once, rollout // ranks)}
    )


def _tuning(tuning: TuningSpec) -> TuningSpec:
    """With the sections that the method reads."""
    filled: dict[str, Any] = {}
    continued = tuning.adapter is not None and tuning.adapter.mode == "continue"
    if tuning.method in ("lora", "qlora") and not continued:
        lora = tuning.lora or LoraSpec()
        alpha = lora.alpha if lora.alpha is not None else 2 * lora.rank
        filled["lora"] = lora.model_copy(update={"alpha": alpha})
    if tuning.method == "qlora":
        filled["quantization"] = tuning.quantization or QuantizationSpec()
    if tuning.method == "freeze":
        filled["freeze"] = tuning.freeze or FreezeSpec()
    return tuning.model_copy(update=filled)
