"""The trainer of stage rm: the loss of a reward model, and its metrics.

The two answers of a pair are scored separately, each by its last token. The probability that the chosen answer is the
better is the sigmoid of the difference of the scores (Bradley and Terry, 1952; trained as in Ouyang et al., 2022).
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from finetune_trainer.data.collate import Batch
from finetune_trainer.model import stream
from finetune_trainer.training.trainer import BaseTrainer, EvaluationValues


class RmTrainer(BaseTrainer):
    """See the module. Batches are those of `data.datasets.Pairs`: the chosen answers, then the rejected answers."""

    def __init__(self, *, center: float | None = None, **kwargs: Any) -> None:
        """``center``: weight of the term that keeps scores around zero."""
        super().__init__(**kwargs)
        self.center = center or 0.0

    def loss_denominators(self, batch: Batch) -> list[float]:
        """Pairs: the weight of a pair does not depend on its length."""
        return [len(batch["lengths"]) / 2]

    def micro_batch_loss(self, model: nn.Module, batch: Batch, denominator: torch.Tensor) -> torch.Tensor:
        """Summed over the micro-batch, and divided by the pairs of the global batch."""
        chosen, rejected = self.scores(model, batch)
        pairs, margins = len(chosen), (chosen - rejected).detach()
        scores = torch.cat([chosen, rejected]).detach()
        self.add_metrics(
            accuracy=((margins > 0).sum(), pairs),
            margin=(margins.sum(), pairs),
            mean_reward=(scores.sum(), 2 * pairs),
        )
        loss: torch.Tensor = losses(chosen, rejected, self.center).sum() / denominator
        return loss

    def scores(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """([B] of the chosen answers, [B] of the rejected answers), in fp32."""
        output = model(**stream.forward_inputs(batch))
        chosen, rejected = output.logits[:, 0].float().chunk(2)
        return chosen, rejected

    def evaluation_step(self, model: nn.Module, batch: Batch) -> Batch:
        """Per pair, each [B]."""
        chosen, rejected = self.scores(model, batch)
        return {"chosen": chosen, "rejected": rejected, "loss": losses(chosen, rejected, self.center)}

    def evaluation_metrics(self, values: EvaluationValues) -> dict[str, float]:
        chosen, rejected = values["chosen"], values["rejected"]
        scores = np.concatenate([chosen, rejected])
        return {
            "loss": float(values["loss"].mean()),
            "accuracy": float((chosen > rejected).mean()),
            "margin": float((chosen - rejected).mean()),
            "mean_reward": float(scores.mean()),
            "min_reward": float(scores.min()),
            "max_reward": float(scores.max()),
        }


def losses(chosen: torch.Tensor, rejected: torch.Tensor, center: float = 0.0) -> torch.Tensor:
    """[B]: -log sigmoid(r_c - r_r) + ``center`` * (r_c + r_r)^2 (Eisenstein et al., 2023, eq. 5)."""
    loss = -functional.logsigmoid(chosen - rejected)
    return loss + center * (chosen + rejected) ** 2 if center else loss
