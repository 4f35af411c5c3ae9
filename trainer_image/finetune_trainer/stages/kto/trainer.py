"""The trainer of stage kto: the reference point of each global batch, and the loss beside it."""

from collections.abc import Sequence
from typing import Any

import torch
from finetune_api.stages import KtoSpec

from finetune_trainer.stages import logprobs
from finetune_trainer.stages.agree import share
from finetune_trainer.stages.engine import Batch, Engine, Values
from finetune_trainer.stages.kto import losses
from finetune_trainer.stages.reference import Reference


class KtoTrainer(Engine):
    """Made by the workflow."""

    def __init__(self, *, settings: KtoSpec, reference: Reference, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings, self.reference = settings, reference
        self.reference_point = 0.0
        """Of the step at hand."""
        logprobs.add(self.model)
        reference.place(self)

    def keys(self, rows: Sequence[int], global_batch: int) -> Sequence[Any]:
        """Each row with the one before it in its global batch, whose answer it borrows; the first with the last."""
        starts = range(0, len(rows), global_batch)
        batches = [rows[start : start + global_batch] for start in starts]
        return [(row, batch[place - 1]) for batch in batches for place, row in enumerate(batch)]

    def counts(self, batch: Batch) -> list[float]:
        """Rows, those wanted, and the tokens of their answers."""
        desirable, tokens = batch["desirable"], logprobs.counted(batch["labels"])
        return [len(desirable), float(desirable.sum()), float(tokens[desirable].sum())]

    def begin_step(self, batches: list[Batch]) -> None:
        """The reference point of the global batch. Nothing of it is trained, so it is known before the first forward
        that is, and doesn't depend on how the batch is cut up."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            mine = sum(float(self.kl_ratios(self.model, batch).double().sum()) for batch in batches)
        self.model.train(training)
        total = sum(one for (one,) in share([mine], self.args.device))
        self.reference_point = losses.reference_point(total, self.step_facts.counts[0])
        self.noted.add_for_all("kl", self.reference_point)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Summed over the micro-batch, and divided by the rows, or the wanted answers' tokens, of the global batch."""
        values = self.of_rows(model, inputs)
        wanted, ratios = values["desirable"].bool(), values["ratio"]
        loss: torch.Tensor = self.loss(ratios, wanted, self.reference_point).sum() / num_items_in_batch
        rows, wanted_rows, wanted_tokens = self.step_facts.counts
        if self.settings.sft_weight:
            nll = values["nll"][wanted].sum()
            loss = loss + self.settings.sft_weight * nll / max(wanted_tokens, 1.0)
            self.note(sft_loss=(nll, values["tokens"][wanted].sum()))
        rewards, sides = self.settings.beta * ratios.detach(), {"chosen": wanted, "rejected": ~wanted}
        sums = {name: rewards[side].sum() for name, side in sides.items()}
        for name, side in sides.items():
            self.note(**{f"rewards/{name}": (sums[name], side.sum())})
            self.note(**{f"logps/{name}": (-values["nll"][side].sum(), side.sum())})
        self.note(**{"rewards/accuracies": (right(ratios, wanted, self.reference_point).sum(), len(ratios))})
        # A difference of two means of the global batch, to which this micro-batch adds its part.
        both = 0 < wanted_rows < rows
        margin = sums["chosen"] / wanted_rows - sums["rejected"] / (rows - wanted_rows) if both else 0.0
        self.note(**{"rewards/margins": (margin, len(ratios) / rows if both else 0.0)})
        return loss * self.ranks

    def measured(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return self.of_rows(model, batch) | {"kl_ratio": self.kl_ratios(model, batch)}

    def summary(self, values: Values) -> dict[str, float]:
        """The reference point is that of the whole split."""
        of = {name: torch.from_numpy(one) for name, one in values.items()}
        wanted, ratios, nll = of["desirable"].bool(), of["ratio"], of["nll"]
        point = losses.reference_point(float(of["kl_ratio"].sum()), len(ratios))
        metrics = {
            "loss": float(self.loss(ratios, wanted, point).mean()),
            "kl": point,
            "rewards/accuracies": float(right(ratios, wanted, point).double().mean()),
        }
        for name, side in {"chosen": wanted, "rejected": ~wanted}.items():
            if side.any():
                metrics[f"rewards/{name}"] = float(self.settings.beta * ratios[side].mean())
                metrics[f"logps/{name}"] = float(-nll[side].mean())
        if {"rewards/chosen", "rewards/rejected"} <= set(metrics):
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        if self.settings.sft_weight:
            metrics["sft_loss"] = float(nll[wanted].sum()) / max(float(of["tokens"][wanted].sum()), 1.0)
            metrics["loss"] += self.settings.sft_weight * metrics["sft_loss"]
        return metrics

    def loss(self, ratios: torch.Tensor, wanted: torch.Tensor, point: float) -> torch.Tensor:
        """One value a row."""
        spec = self.settings
        return losses.kto(ratios, wanted, point, spec.beta, spec.desirable_weight, spec.undesirable_weight)

    def of_rows(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Of each row: log-ratio, negative log-likelihood, tokens of the answer, and whether it is wanted."""
        reference = self.of_reference(model, batch)
        answers = sums(model, batch)
        return {
            "ratio": answers - reference,
            "nll": -answers,
            "tokens": logprobs.counted(batch["labels"]).float(),
            "desirable": batch["desirable"].float(),
        }

    def kl_ratios(self, model: Any, batch: Batch) -> torch.Tensor:
        """Log-ratios of the mismatched rows."""
        reference = self.of_reference(model, batch, "kl_")
        return sums(model, batch, "kl_") - reference

    def of_reference(self, model: Any, batch: Batch, of: str = "") -> torch.Tensor:
        with self.reference.in_place(model) as reference:
            return sums(reference, batch, of)


def sums(model: Any, batch: Batch, of: str = "") -> torch.Tensor:
    """[B]: log-probability of each answer, or with ``kl_`` of each mismatched one."""
    inputs = (batch[f"{of}{name}"] for name in ("input_ids", "attention_mask", "labels"))
    return logprobs.of_answers(model, *inputs).sum(dim=1)


def right(ratios: torch.Tensor, wanted: torch.Tensor, point: float) -> torch.Tensor:
    """Which answers are on their side of the reference point: a pair's accuracy, for answers without a partner."""
    return torch.where(wanted, ratios > point, ratios < point)
