"""TRL's SFTTrainer with the engine's changes, and a loss that computes nothing but the loss. Stage pt uses it, too."""

from typing import Any

import torch
from peft import PeftModel
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.model.head import TrainedPositions
from finetune_trainer.stages.engine import Engine


class SftTrainer(Engine, SFTTrainer):
    """Made by the workflow; rows come tokenized and are never prepared again."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        self.trained_positions = TrainedPositions(base) if self.args.device.type == "cpu" else None

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Negative log-likelihood, summed over the micro-batch and divided by the trained tokens of the global batch.

        TRL's own adds entropy and accuracy, gathered and synchronised for each micro-batch; only a mixture of experts
        needs it, for its auxiliary loss.
        """
        if self.aux_loss_enabled:
            whole: torch.Tensor = super().compute_loss(  # type: ignore[no-untyped-call]
                model, inputs, num_items_in_batch=num_items_in_batch
            )
            return whole
        # DDP averages gradients over ranks; the count is over all of them.
        share = self.accelerator.num_processes / num_items_in_batch
        loss: torch.Tensor = self.negative_log_likelihood(model, inputs) * share
        return loss

    def negative_log_likelihood(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Summed over the trained tokens of a micro-batch. Without a cache: with one, packed documents would see each
        other."""
        if self.trained_positions is not None:
            inputs = self.trained_positions.inputs(inputs)
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        loss: torch.Tensor = -outputs.log_probs.sum()
        return loss
