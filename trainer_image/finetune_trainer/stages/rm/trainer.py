"""The loss of a reward model, and what is measured of it.

A pair's two answers are scored apart, each by its last token; the probability that the chosen one is the better is the
sigmoid of the difference (Bradley and Terry, 1952; as Ouyang et al., 2022, train it).
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from finetune_trainer.stages.engine import Batch, Engine, Values


class RmTrainer(Engine):
    """Made by the workflow. Batches are those of `data.pairs`: the chosen answers, then the rejected ones."""

    def __init__(self, *, center: float | None = None, **kwargs: Any) -> None:
        """``center``: weight of the term that keeps scores around zero."""
        super().__init__(**kwargs)
        self.center = center or 0.0

    def counts(self, batch: Batch) -> list[float]:
        """Pairs: one that is long weighs no more than others."""
        return [len(batch["input_ids"]) / 2]

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        chosen, rejected = self.scores(model, inputs)
        pairs, margins = len(chosen), (chosen - rejected).detach()
        scores = torch.cat([chosen, rejected]).detach()
        self.note(
            accuracy=((margins > 0).sum(), pairs),
            margin=(margins.sum(), pairs),
            mean_reward=(scores.sum(), 2 * pairs),
        )
        loss: torch.Tensor = losses(chosen, rejected, self.center).sum() / num_items_in_batch * self.ranks
        return loss

    def scores(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the chosen and the rejected answers, in fp32."""
        said = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        chosen, rejected = said.logits[:, 0].float().chunk(2)
        return chosen, rejected

    def measured(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        chosen, rejected = self.scores(model, batch)
        return {"chosen": chosen, "rejected": rejected, "loss": losses(chosen, rejected, self.center)}

    def summary(self, values: Values) -> dict[str, float]:
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
    """Of each pair: -log sigmoid(r_c - r_r), and ``center`` * (r_c + r_r)^2 (Eisenstein et al., 2023, eq. 5)."""
    loss = -functional.logsigmoid(chosen - rejected)
    return loss + center * (chosen + rejected) ** 2 if center else loss
