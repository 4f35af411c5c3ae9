"""The trainer of stage dpo: log-probabilities of pairs by policy and reference, and the loss of them."""

from typing import Any

import torch
from finetune_api.stages import DpoSpec
from torch import nn

from finetune_trainer.data.collate import Batch
from finetune_trainer.stages.dpo import losses
from finetune_trainer.stages.dpo.precomputed import REFERENCE, Precomputed
from finetune_trainer.training import logprobs
from finetune_trainer.training.reference_model import Reference
from finetune_trainer.training.trainer import BaseTrainer, EvaluationValues


def needs_reference(settings: DpoSpec) -> bool:
    """Whether the loss compares with a reference. Others compare with the other answer only."""
    return settings.loss not in ("orpo", "simpo")


class DpoTrainer(BaseTrainer):
    """See the module. Batches are those of `data.datasets.Pairs`: the chosen answers, then the rejected answers.
    ``reference`` is None if the loss needs none, or if batches have its log-probabilities."""

    def __init__(
        self, *, settings: DpoSpec, reference: Reference | None, precomputed: Precomputed | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.settings, self.reference, self.precomputed = settings, reference, precomputed
        self.sft_weight = settings.sft_weight + (settings.loss == "orpo")
        logprobs.add_fused_head(self.model)
        if reference is not None:
            reference.place(self)

    def before_training(self) -> None:
        """With ``precomputeReference``: the reference sees all pairs now, and is freed."""
        if self.precomputed is not None and self.reference is not None:
            self.precomputed.compute(self, self.reference_log_probs)
            self.reference.free()
            self.reference = None

    def loss_denominators(self, batch: Batch) -> list[float]:
        """Pairs, and tokens of their chosen answers."""
        chosen, _ = logprobs.label_counts(batch).chunk(2)
        return [len(chosen), float(chosen.sum())]

    def micro_batch_loss(self, model: nn.Module, batch: Batch, denominator: torch.Tensor) -> torch.Tensor:
        """Summed over the micro-batch. The loss of pairs is divided by the pairs of the global batch, the supervised
        loss by the tokens of its chosen answers."""
        values = self.pair_values(model, batch)
        nll, tokens = values.pop("nll").sum(), values.pop("tokens").sum()
        loss: torch.Tensor = values.pop("loss").sum() / denominator
        if self.sft_weight:
            loss = loss + self.sft_weight * nll / self.step_stats.denominators[1]
            self.add_metrics(sft_loss=(nll, tokens))
        self.add_metrics(**{name: (value.sum(), len(value)) for name, value in values.items()})
        return loss

    def evaluation_step(self, model: nn.Module, batch: Batch) -> Batch:
        return self.pair_values(model, batch)

    def pair_values(self, model: nn.Module, batch: Batch) -> Batch:
        """Each [B], per pair: its loss, its metrics, and ``nll`` and ``tokens`` of its chosen answer."""
        spec = self.settings
        reference = self.reference_log_probs(model, batch) if needs_reference(spec) else None
        token_log_probs = logprobs.token_log_probs(model, batch)
        answers = self.answer_log_probs(token_log_probs, batch)
        lengths = logprobs.label_counts(batch)
        ratios = answers / lengths if reference is None else answers - reference
        chosen, rejected = ratios.chunk(2)
        more = {}
        match spec.loss:
            case "sigmoid":
                loss = losses.sigmoid(chosen - rejected, spec.beta, spec.label_smoothing)
            case "hinge":
                loss = losses.hinge(chosen - rejected, spec.beta)
            case "ipo":
                chosen_mean, rejected_mean = (ratios / lengths).chunk(2)
                loss = losses.ipo(chosen_mean - rejected_mean, spec.beta)
            case "orpo":
                ratio = losses.odds_ratio(chosen, rejected)
                loss, more = spec.beta * ratio, {"odds_ratio_loss": ratio}
            case "simpo":
                loss = losses.simpo(chosen, rejected, spec.beta, spec.simpo_gamma)
        chosen_log_probs, rejected_log_probs = answers.chunk(2)
        return more | {
            "loss": loss,
            "nll": -logprobs.sum_by_document(token_log_probs, batch).chunk(2)[0],
            "tokens": lengths.chunk(2)[0].float(),
            "rewards/chosen": spec.beta * chosen,
            "rewards/rejected": spec.beta * rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": spec.beta * (chosen - rejected),
            "logps/chosen": chosen_log_probs,
            "logps/rejected": rejected_log_probs,
        }

    def evaluation_metrics(self, values: EvaluationValues) -> dict[str, float]:
        sft_loss = float(values["nll"].sum()) / max(float(values["tokens"].sum()), 1.0)
        means = {name: float(values[name].mean()) for name in values if name not in ("item", "nll", "tokens")}
        if self.sft_weight:
            means |= {"loss": means["loss"] + self.sft_weight * sft_loss, "sft_loss": sft_loss}
        return means

    def reference_log_probs(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """[2B]: log-probability of each answer by the reference."""
        if self.reference is None:
            computed: torch.Tensor = batch[REFERENCE]
            return computed
        with self.reference.activated(model) as reference:
            return self.answer_log_probs(logprobs.token_log_probs(reference, batch), batch)

    def answer_log_probs(self, token_log_probs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[2B]: log-probability of each answer, from those of the tokens."""
        if self.settings.ld_alpha is not None:
            token_log_probs = losses.desensitized(token_log_probs, batch, self.settings.ld_alpha)
        return logprobs.sum_by_document(token_log_probs, batch)
