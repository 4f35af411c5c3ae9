"""What the model is measured on: loss and perplexity over the splits that are not trained on.

Called by `steps` between optimizer steps, and by workflows at the end. The loss is the stage's own: summed over all
ranks, divided by the tokens that count, so it doesn't depend on ranks or micro-batch. Nothing that training goes on
with is touched.

Where the GPU has no room for a batch, all ranks measure it again with half as many rows, and go on so: the rows here
may be longer than any that training has seen, so its micro-batch is left alone. Not with sharded weights: there the
other ranks already wait for the one that had no room.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from finetune_trainer import gpumemory, heartbeat
from finetune_trainer.data.items import Items
from finetune_trainer.data.row import IGNORED
from finetune_trainer.model import sharding
from finetune_trainer.run import Run
from finetune_trainer.stages.agree import share

log = logging.getLogger(__name__)

PREFIX = "eval"
"""Of splits and metrics: ``eval_loss`` over all of them; with several, ``eval_1_loss`` and so on for each."""


class Evaluation:
    """The evaluation of one run. The trainer has ``negative_log_likelihood``; ``alive`` is called now and then."""

    def __init__(
        self, run: Run, splits: dict[str, Items], pad_id: int, attention: str, alive: Callable[[], None]
    ) -> None:
        self.run, self.splits, self.alive = run, splits, alive
        self.collate = {name: items.collator(pad_id, attention) for name, items in splits.items()}
        self.rows = run.micro_batch_size
        """Measured at once by each rank."""
        self.results: dict[str, float] = {}
        """Of the last complete measurement."""

    def due(self, state: Any) -> bool:
        """Whether to measure before the next step. A resumed run may have done it before it was saved."""
        spec = self.run.job.evaluation
        if not self.splits or spec is None or spec.every_steps is None or not state.global_step:
            return False
        done = any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)
        return not done and state.global_step % spec.every_steps == 0

    def measure(self, trainer: Any) -> bool:
        """Measure and log. On all ranks; when one is told to stop, all leave it unfinished and unlogged: False."""
        if not self.splits:
            return True
        began, sums = time.monotonic(), {}
        # Not as DDP wraps it: that exchanges buffers in each forward, and a rank without room might not take part.
        model = trainer.model
        model.eval()
        try:
            for name, items in self.splits.items():
                summed = self._sums(trainer, model, items, self.collate[name])
                if summed is None:
                    heartbeat.beat("train", trainer.state.global_step)
                    log.warning("told to stop: the evaluation after step %d is left out", trainer.state.global_step)
                    return False
                sums[name] = summed
            metrics = summary(sums)
            trainer.log(dict(metrics))
        finally:
            model.train()
            sharding.reshard(model)
        heartbeat.beat("train", trainer.state.global_step)  # not after an error: it is told with its phase
        self.results = metrics | {
            "eval_samples": sum(len(items) for items in self.splits.values()),
            "eval_tokens": sum(tokens for _, tokens in sums.values()),
            "eval_runtime": round(time.monotonic() - began, 2),
        }
        return True

    def _sums(
        self, trainer: Any, model: Any, items: Items, collate: Callable[..., dict[str, torch.Tensor]]
    ) -> tuple[float, int] | None:
        """(summed loss, tokens) over all ranks, or None where they agreed to stop."""
        # Longest first: little padding, and what doesn't fit into memory shows at once.
        order = np.argsort(-items.lengths.astype(np.int64), kind="stable").tolist()
        device = trainer.args.device
        loss, tokens, first = torch.zeros((), dtype=torch.float64, device=device), 0, 0
        while first < len(order):
            self.alive()
            heartbeat.beat("evaluate", trainer.state.global_step)
            mine = order[first + self.run.rank * self.rows :][: self.rows]
            # A rank that has none left still takes part: sharded weights are gathered by all or by none.
            summed, count = self._measured(trainer, model, collate(mine or order[-1:]))
            verdicts = share([self.run.stop_requested(), summed is None], device)
            stop_on, no_room_on = zip(*verdicts, strict=True)
            if any(stop_on):
                return None
            if any(no_room_on):
                self.rows = max(1, self.rows // 2)
                if self.run.is_main:
                    log.warning("no room on the GPU: the evaluation goes on with %d rows at once", self.rows)
                continue
            if mine and summed is not None:
                loss, tokens = loss + summed.double(), tokens + count
            first += len(verdicts) * self.rows
        losses, counts = zip(*share([float(loss), tokens], trainer.args.device), strict=True)
        return sum(losses), int(sum(counts))

    def _measured(self, trainer: Any, model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor | None, int]:
        """(summed loss, tokens) of one batch of this rank; no loss where there was no room for it, but for less."""
        batch = trainer._prepare_inputs(batch)
        del batch["tokens"]
        count = int((batch["labels"][:, 1:] != IGNORED).sum())
        try:
            with torch.no_grad(), trainer.compute_loss_context_manager():
                return trainer.negative_log_likelihood(model, batch), count
        except RuntimeError as error:
            if not gpumemory.is_out_of_memory(error) or self.rows == 1 or self.run.job.training.parallelism == "fsdp":
                setattr(error, gpumemory.ROWS, self.rows)
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None, count


def summary(sums: dict[str, tuple[float, int]]) -> dict[str, float]:
    """Loss and perplexity: over all splits, and of each where there are several."""
    total = (sum(loss for loss, _ in sums.values()), sum(tokens for _, tokens in sums.values()))
    each = {name.replace("-", "_"): one for name, one in sums.items()} if len(sums) > 1 else {}
    result = {}
    for name, (loss, tokens) in ({PREFIX: total} | each).items():
        mean = loss / max(tokens, 1)
        result[f"{name}_loss"] = mean
        result[f"{name}_perplexity"] = math.exp(mean) if mean < 700 else math.inf
    return result
