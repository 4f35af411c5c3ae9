"""The trainer of stages sft and pt: the negative log-likelihood of the tokens with labels."""

import math
from typing import Any

import torch
from torch import nn

from finetune_trainer.data.collate import Batch
from finetune_trainer.data.row import IGNORED
from finetune_trainer.training import logprobs
from finetune_trainer.training.trainer import BaseTrainer, EvaluationValues


class SftTrainer(BaseTrainer):
    """See the module."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        logprobs.add_fused_head(self.model, outputs=("log_probs", "is_top1"))
        self.router_loss_weight = ask_for_router_loss(self.model.config.get_text_config())

    def micro_batch_loss(self, model: nn.Module, batch: Batch, denominator: torch.Tensor) -> torch.Tensor:
        """Summed over the micro-batch, and divided by the trained tokens of the global batch."""
        output = logprobs.score(model, batch)
        loss: torch.Tensor = -output["log_probs"].sum() / denominator
        if self.router_loss_weight:
            # A mean over the micro-batch: its part in the mean over all micro-batches of the step.
            router_loss, micro_batches = output["aux_loss"], self.step_stats.micro_batches
            loss = loss + self.router_loss_weight * router_loss / micro_batches
            self.add_metrics(aux_loss=(router_loss, 1))
        return loss

    def evaluation_step(self, model: nn.Module, batch: Batch) -> Batch:
        """Sums over the batch, each [1]."""
        output = logprobs.score(model, batch, ("log_probs", "is_top1"))
        tokens = (batch["labels"][:, 1:] != IGNORED).sum()
        sums = {"loss": -output["log_probs"].sum(), "correct": output["is_top1"].sum(), "tokens": tokens}
        return {name: value.reshape(1) for name, value in sums.items()}

    def evaluation_metrics(self, values: EvaluationValues) -> dict[str, float]:
        return token_metrics(values)


def ask_for_router_loss(config: Any) -> float:
    """Let a mixture of experts compute the auxiliary loss that balances its experts. Returns the weight of that loss,
    which is the model's own; 0 for other models."""
    if not hasattr(config, "router_aux_loss_coef"):
        return 0.0
    weight = float(config.router_aux_loss_coef or 0.0) if hasattr(config, "output_router_logits") else 0.0
    config.output_router_logits = weight != 0.0
    return weight


def token_metrics(values: EvaluationValues) -> dict[str, float]:
    """Loss per token, perplexity (its exponential), and the share of tokens that the model found likeliest."""
    tokens = max(float(values["tokens"].sum()), 1.0)
    loss = float(values["loss"].sum()) / tokens
    perplexity = math.exp(min(loss, 700.0))  # JSON has no infinity
    return {"loss": loss, "perplexity": perplexity, "accuracy": float(values["correct"].sum()) / tokens}
