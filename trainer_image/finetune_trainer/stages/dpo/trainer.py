"""The trainer of stage dpo: what policy and reference make of pairs, and the loss that follows."""

from typing import Any

import torch
from finetune_api.stages import DpoSpec

from finetune_trainer.stages import logprobs
from finetune_trainer.stages.dpo import losses
from finetune_trainer.stages.dpo.precomputed import REFERENCE, Precomputed
from finetune_trainer.stages.engine import Batch, Engine, Values
from finetune_trainer.stages.reference import Reference

NO_REFERENCE = ("orpo", "simpo")
"""Losses that compare with nothing but the other answer."""


class DpoTrainer(Engine):
    """Made by the workflow. ``reference`` is None where the loss needs none, or the batches bring what it says."""

    def __init__(
        self, *, settings: DpoSpec, reference: Reference | None, precomputed: Precomputed | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.settings, self.reference = settings, reference
        self.sft_weight = settings.sft_weight + (settings.loss == "orpo")
        logprobs.add(self.model)
        if reference is not None:
            reference.place(self)
        if precomputed is not None:
            precomputed.trainer = self
            self.add_callback(precomputed)

    def counts(self, batch: Batch) -> list[float]:
        """Pairs, and tokens of their chosen answers."""
        chosen, _ = logprobs.counted(batch["labels"]).chunk(2)
        return [len(chosen), float(chosen.sum())]

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Summed over the micro-batch, and divided by the pairs, or the chosen tokens, of the global batch."""
        values = self.measured(model, inputs)
        nll, tokens = values.pop("nll").sum(), values.pop("tokens").sum()
        loss: torch.Tensor = values.pop("loss").sum() / num_items_in_batch
        if self.sft_weight:
            loss = loss + self.sft_weight * nll / self.step_facts.counts[1]
            self.note(sft_loss=(nll, tokens))
        self.note(**{name: (value.sum(), len(value)) for name, value in values.items()})
        return loss * self.ranks

    def measured(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Of each pair: its loss, what is logged of it, and what a supervised loss on the chosen answer is made of."""
        spec, labels = self.settings, batch["labels"]
        reference = self.of_reference(model, batch) if spec.loss not in NO_REFERENCE else None
        per_token = self.per_token(model, batch)
        answers = losses.of_answer(per_token, labels, spec.ld_alpha)
        lengths = logprobs.counted(labels)
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
        sums = answers.chunk(2)
        return more | {
            "loss": loss,
            "nll": -per_token.chunk(2)[0].sum(dim=1),
            "tokens": lengths.chunk(2)[0].float(),
            "rewards/chosen": spec.beta * chosen,
            "rewards/rejected": spec.beta * rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": spec.beta * (chosen - rejected),
            "logps/chosen": sums[0],
            "logps/rejected": sums[1],
        }

    def summary(self, values: Values) -> dict[str, float]:
        sft = float(values["nll"].sum()) / max(float(values["tokens"].sum()), 1.0)
        means = {name: float(values[name].mean()) for name in values if name not in ("item", "nll", "tokens")}
        if self.sft_weight:
            means |= {"loss": means["loss"] + self.sft_weight * sft, "sft_loss": sft}
        return means

    def of_reference(self, model: Any, batch: Batch) -> torch.Tensor:
        """[2B]: what the reference makes of the answers."""
        if self.reference is None:
            return batch[REFERENCE]
        with self.reference.in_place(model) as reference:
            return losses.of_answer(self.per_token(reference, batch), batch["labels"], self.settings.ld_alpha)

    @staticmethod
    def per_token(model: Any, batch: Batch) -> torch.Tensor:
        """[2B, L-1]."""
        return logprobs.of_answers(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
