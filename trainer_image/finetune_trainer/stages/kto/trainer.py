"""The trainer of stage kto: the reference point of each global batch, and the loss beside it."""

from collections.abc import Sequence
from typing import Any

import torch
from finetune_api.stages import KtoSpec
from torch import nn

from finetune_trainer.collectives import all_gather
from finetune_trainer.data.collate import Batch
from finetune_trainer.data.datasets import MISMATCHED
from finetune_trainer.stages.kto import losses
from finetune_trainer.training import logprobs
from finetune_trainer.training.reference_model import Reference
from finetune_trainer.training.trainer import BaseTrainer, EvaluationValues


class KtoTrainer(BaseTrainer):
    """See the module. Batches are those of `data.datasets.LabelledAnswers`."""

    def __init__(self, *, settings: KtoSpec, reference: Reference, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings, self.reference = settings, reference
        self.reference_point = 0.0
        """KL of the current step: the point that rewards are compared with."""
        logprobs.add_fused_head(self.model)
        reference.place(self)

    def indices(self, rows: Sequence[int]) -> Sequence[tuple[int, int]]:
        """Each row with the row before it, whose answer it borrows; the first with the last."""
        return [(row, rows[place - 1]) for place, row in enumerate(rows)]

    def loss_denominators(self, batch: Batch) -> list[float]:
        """Rows, desirable rows, and tokens of the desirable answers."""
        desirable, tokens = batch["desirable"], logprobs.label_counts(batch)
        return [len(desirable), float(desirable.sum()), float(tokens[desirable].sum())]

    def before_step(self, batches: list[Batch]) -> None:
        """Compute the reference point of the global batch. It has no gradient, so all of it is known before the first
        forward pass that has, and it does not depend on the micro-batch."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            local = sum(float(self.mismatched_log_ratios(self.model, batch).double().sum()) for batch in batches)
        self.model.train(training)
        total = sum(rank for (rank,) in all_gather([local], self.args.device))
        self.reference_point = losses.reference_point(total, self.step_stats.denominators[0])
        self.metric_sums.add_global("kl", self.reference_point)

    def micro_batch_loss(self, model: nn.Module, batch: Batch, denominator: torch.Tensor) -> torch.Tensor:
        """Summed over the micro-batch. The KTO loss is divided by the rows of the global batch, the supervised loss by
        the tokens of its desirable answers."""
        values = self.row_values(model, batch)
        desirable, log_ratios = values["desirable"].bool(), values["ratio"]
        loss: torch.Tensor = self.kto_losses(log_ratios, desirable, self.reference_point).sum() / denominator
        rows, desirable_rows, desirable_tokens = self.step_stats.denominators
        if self.settings.sft_weight:
            nll = values["nll"][desirable].sum()
            loss = loss + self.settings.sft_weight * nll / max(desirable_tokens, 1.0)
            self.add_metrics(sft_loss=(nll, values["tokens"][desirable].sum()))
        rewards, sides = self.settings.beta * log_ratios.detach(), {"chosen": desirable, "rejected": ~desirable}
        sums = {name: rewards[side].sum() for name, side in sides.items()}
        for name, side in sides.items():
            self.add_metrics(**{f"rewards/{name}": (sums[name], side.sum())})
            self.add_metrics(**{f"logps/{name}": (-values["nll"][side].sum(), side.sum())})
        correct = is_correct(log_ratios, desirable, self.reference_point)
        self.add_metrics(**{"rewards/accuracies": (correct.sum(), len(log_ratios))})
        # The difference of two means of the global batch, to which this micro-batch adds its part.
        both = 0 < desirable_rows < rows
        margin = sums["chosen"] / desirable_rows - sums["rejected"] / (rows - desirable_rows) if both else 0.0
        self.add_metrics(**{"rewards/margins": (margin, len(log_ratios) / rows if both else 0.0)})
        return loss

    def evaluation_step(self, model: nn.Module, batch: Batch) -> Batch:
        """Per row, each [B]."""
        return self.row_values(model, batch) | {"kl_ratio": self.mismatched_log_ratios(model, batch)}

    def evaluation_metrics(self, values: EvaluationValues) -> dict[str, float]:
        """The reference point is that of the whole split."""
        tensors = {name: torch.from_numpy(value) for name, value in values.items()}
        desirable, log_ratios, nll = tensors["desirable"].bool(), tensors["ratio"], tensors["nll"]
        point = losses.reference_point(float(tensors["kl_ratio"].sum()), len(log_ratios))
        metrics = {
            "loss": float(self.kto_losses(log_ratios, desirable, point).mean()),
            "kl": point,
            "rewards/accuracies": float(is_correct(log_ratios, desirable, point).double().mean()),
        }
        for name, side in {"chosen": desirable, "rejected": ~desirable}.items():
            if side.any():
                metrics[f"rewards/{name}"] = float(self.settings.beta * log_ratios[side].mean())
                metrics[f"logps/{name}"] = float(-nll[side].mean())
        if {"rewards/chosen", "rewards/rejected"} <= set(metrics):
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        if self.settings.sft_weight:
            metrics["sft_loss"] = float(nll[desirable].sum()) / max(float(tensors["tokens"][desirable].sum()), 1.0)
            metrics["loss"] += self.settings.sft_weight * metrics["sft_loss"]
        return metrics

    def kto_losses(self, log_ratios: torch.Tensor, desirable: torch.Tensor, point: float) -> torch.Tensor:
        """[B]."""
        spec = self.settings
        return losses.kto(log_ratios, desirable, point, spec.beta, spec.desirable_weight, spec.undesirable_weight)

    def row_values(self, model: nn.Module, batch: Batch) -> Batch:
        """Each [B]: log-ratio and negative log-likelihood of the answer, its tokens, and whether it is desirable."""
        reference = self.reference_log_probs(model, batch)
        answers = answer_log_probs(model, batch)
        return {
            "ratio": answers - reference,
            "nll": -answers,
            "tokens": logprobs.label_counts(batch).float(),
            "desirable": batch["desirable"].float(),
        }

    def mismatched_log_ratios(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """[B]: log-ratios of the mismatched rows."""
        mismatched = batch[MISMATCHED]
        reference = self.reference_log_probs(model, mismatched)
        return answer_log_probs(model, mismatched) - reference

    def reference_log_probs(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """[B]: `answer_log_probs` of the reference."""
        with self.reference.activated(model) as reference:
            return answer_log_probs(reference, batch)


def answer_log_probs(model: nn.Module, batch: Batch) -> torch.Tensor:
    """[B]: log-probability of each answer."""
    return logprobs.sum_by_document(logprobs.token_log_probs(model, batch), batch)


def is_correct(log_ratios: torch.Tensor, desirable: torch.Tensor, point: float) -> torch.Tensor:
    """[B]: which answers are on their side of the reference point. It is the accuracy of pairs, for answers without a
    partner."""
    return torch.where(desirable, log_ratios > point, log_ratios < point)
