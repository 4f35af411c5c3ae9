"""TRL's SFTTrainer with the engine's changes, and a loss that computes nothing but the loss. Stage pt uses it, too."""

import math
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.data.row import IGNORED
from finetune_trainer.model.head import TrainedPositions
from finetune_trainer.stages.engine import Batch, Engine, Values


class SftTrainer(Engine, SFTTrainer):
    """Made by the workflow; rows come tokenized and are never prepared again."""

    def __init__(self, **kwargs: Any) -> None:
        # TRL wants a data set of its own kind; the engine then puts its own in its place.
        super().__init__(train_dataset=Dataset.from_dict({"item": [0]}), **kwargs)
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
        loss: torch.Tensor = -self.scored(model, inputs).log_probs.sum() / num_items_in_batch * self.ranks
        return loss

    def scored(self, model: Any, inputs: Batch) -> Any:
        """The forward pass: log-probabilities of the trained tokens of a micro-batch, and in evaluations which of them
        are the likeliest. Without a cache: with one, packed documents would see each other."""
        if self.trained_positions is not None:
            outputs = ("log_probs",) if torch.is_grad_enabled() else ("log_probs", "is_top1")
            return self.trained_positions.score(model, inputs, outputs)
        return model(**inputs, use_cache=False, fused_lm_head=True)

    def measured(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        count = (batch["labels"][:, 1:] != IGNORED).sum()
        scored = self.scored(model, batch)
        sums = {"loss": -scored.log_probs.sum(), "correct": scored.is_top1.sum(), "tokens": count}
        return {name: value.reshape(1) for name, value in sums.items()}

    def summary(self, values: Values) -> dict[str, float]:
        return of_tokens(values)


def of_tokens(values: Values) -> dict[str, float]:
    """Loss and perplexity (its exponential), and the share of tokens that were the likeliest."""
    tokens = max(float(values["tokens"].sum()), 1.0)
    loss = float(values["loss"].sum()) / tokens
    perplexity = math.exp(min(loss, 700.0))  # JSON has no infinity
    return {"loss": loss, "perplexity": perplexity, "accuracy": float(values["correct"].sum()) / tokens}
