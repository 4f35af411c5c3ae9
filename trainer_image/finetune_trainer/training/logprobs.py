"""Log-probabilities of given tokens, in one forward pass and without the logits of all positions.

All stages but rm compute their loss with them. Stages dpo, kto and ppo use the same functions for the policy and its
reference, so that equal models have equal log-probabilities to the last bit. `add_fused_head` is called once per model.

The head is TRL's fused head. On GPUs its kernel scores the positions with labels. On CPUs it would score every
position, those of prompts included, so `model.lm_head` reduces the positions before the head.
"""

from typing import cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput
from trl.trainer.utils import add_fused_lm_head

from finetune_trainer.data.collate import Batch
from finetune_trainer.data.row import IGNORED
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import stream
from finetune_trainer.model.lm_head import TrainedPositions

POSITIONS = "trained_positions"
"""Attribute of a model with a fused head."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without DDP around it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The causal language model itself, without DDP and without an adapter around it."""
    model = unwrapped(model)
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def add_fused_head(model: nn.Module, temperature: float = 1.0, outputs: tuple[str, ...] = ("log_probs",)) -> None:
    """Give the model its fused head, if it has none yet. The head divides logits by ``temperature``. ``outputs``: what
    it may be asked for, in the names of TRL. Raises InvalidSpec for an adapter of the head, which it would ignore."""
    base = causal_lm(model)
    if isinstance(base.get_output_embeddings(), BaseTunerLayer):  # type: ignore[no-untyped-call]
        raise InvalidSpec(
            "The adapter adapts the output head (lm_head), and the loss reads the weights of the head without its"
            " adapter. Set the mode of that adapter to merge, or train an adapter without lm_head in target_modules."
        )
    if not hasattr(base, POSITIONS):
        add_fused_lm_head(base, temperature=temperature, outputs=outputs)
        setattr(base, POSITIONS, TrainedPositions(base))


def score(model: nn.Module, batch: Batch, outputs: tuple[str, ...] = ("log_probs",)) -> ModelOutput:
    """A forward pass with the fused head over a stream of T tokens. Each of ``outputs`` is [1, N] on CPUs, for the N
    tokens with labels, and [1, T-1] on GPUs, where it is 0 without a label. ``model`` may be wrapped."""
    if batch["labels"].device.type == "cpu":
        positions: TrainedPositions = getattr(causal_lm(model), POSITIONS)
        output: ModelOutput = positions.score(model, batch, outputs)
    else:
        output = model(**stream.forward_inputs(batch), labels=batch["labels"], fused_lm_head=True)
    return output


def token_log_probs(model: nn.Module, batch: Batch) -> torch.Tensor:
    """[T]: log-probability of each token of the stream, or 0 where it has no label. ``model`` may be wrapped."""
    log_probs: torch.Tensor = score(model, batch)["log_probs"][0].float()
    has_label = batch["labels"][0] != IGNORED
    if has_label.device.type == "cpu":
        return log_probs.new_zeros(has_label.shape).masked_scatter(has_label, log_probs)
    return functional.pad(log_probs, (1, 0))  # nothing precedes the first token


def sum_by_document(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[T] -> [documents]: the sum over the tokens of each document."""
    return values.new_zeros(len(batch["lengths"])).index_add(0, batch["document_ids"], values)


def label_counts(batch: Batch) -> torch.Tensor:
    """[documents]: number of predicted tokens with a label."""
    return sum_by_document((batch["labels"][0] != IGNORED).long(), batch)
