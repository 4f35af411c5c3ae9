"""What the model is measured on: the splits that are not trained on, by the stage's own measures.

Called by `steps` between optimizer steps, and by `playbook` at the end. A stage says what it measures of a batch and
what follows from all of it (`Engine.measured`, `Engine.summary`), so metrics don't depend on ranks or micro-batch.
Nothing that training goes on with is touched.

Where the GPU has no room for a batch, all ranks measure it again with half as many rows, and go on so: the rows here
may be longer than any that training has seen, so its micro-batch is left alone. Not with sharded weights: there the
other ranks already wait for the one that had no room.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from finetune_trainer import gpumemory, heartbeat
from finetune_trainer.model import sharding
from finetune_trainer.run import Run
from finetune_trainer.stages.agree import gather, share
from finetune_trainer.stages.engine import Engine, Values

log = logging.getLogger(__name__)

PREFIX = "eval"
"""Of splits and metrics: ``eval_loss`` over all of them; with several, ``eval_1_loss`` and so on for each."""


class Evaluation:
    """The evaluation of one run; ``alive`` is called now and then."""

    def __init__(
        self, run: Run, splits: dict[str, Any], pad_id: int, attention: str, alive: Callable[[], None]
    ) -> None:
        self.run, self.splits, self.alive = run, splits, alive
        self.collate = {name: items.collator(pad_id, attention) for name, items in splits.items()}
        self.rows = run.micro_batch_size
        """Measured at once by each rank."""
        self.results: dict[str, float] = {}
        """Of the last complete measurement."""
        self.values: dict[str, Values] = {}
        """What it was made from, of each split."""

    def due(self, state: Any) -> bool:
        """Whether to measure before the next step. A resumed run may have done it before it was saved."""
        spec = self.run.job.evaluation
        if not self.splits or spec is None or spec.every_steps is None or not state.global_step:
            return False
        return state.global_step % spec.every_steps == 0 and not _logged(state)

    def measure(self, trainer: Engine, logged: bool = True) -> bool:
        """Measure and log, unless the run that this one goes on from did. On all ranks; when one is told to stop, all
        leave it unfinished and unlogged: False."""
        if not self.splits:
            return True
        began = time.monotonic()
        found = self.scan(trainer)
        if found is None:
            log.warning("told to stop: the evaluation after step %d is left out", trainer.state.global_step)
            return False
        metrics = summary(trainer.summary, found)
        if logged and not _logged(trainer.state):
            trainer.log(dict(metrics))
        self.values = found
        self.results = metrics | {
            "eval_samples": sum(len(items) for items in self.splits.values()),
            "eval_runtime": round(time.monotonic() - began, 2),
        }
        return True

    def scan(self, trainer: Engine) -> dict[str, Values] | None:
        """What is measured of each split. On all ranks; None where they agreed to stop."""
        found = {}
        # Not as DDP wraps it: that exchanges buffers in each forward, and a rank without room might not take part.
        model = trainer.model
        model.eval()
        try:
            for name in self.splits:
                values = self._values(trainer, model, name)
                if values is None:
                    break
                found[name] = values
        finally:
            model.train()
            sharding.reshard(model)
        heartbeat.beat("train", trainer.state.global_step)  # not after an error: it is told with its phase
        return found if len(found) == len(self.splits) else None

    def _values(self, trainer: Engine, model: Any, name: str) -> Values | None:
        """What was measured by all ranks, and as ``item`` on which items; None where they agreed to stop."""
        items = self.splits[name]
        # Longest first: little padding, and what doesn't fit into memory shows at once.
        order = np.argsort(-items.lengths.astype(np.int64), kind="stable").tolist()
        keys = trainer.keys(range(len(items)), len(items))
        device = trainer.args.device
        measured: list[Values] = []
        first = 0
        while first < len(order):
            self.alive()
            heartbeat.beat("evaluate", trainer.state.global_step)
            mine = order[first + self.run.rank * self.rows :][: self.rows]
            # A rank that has none left still takes part: sharded weights are gathered by all or by none.
            values = self._measured(trainer, model, self.collate[name]([keys[item] for item in mine or order[-1:]]))
            verdicts = share([self.run.stop_requested(), values is None], device)
            stop_on, no_room_on = zip(*verdicts, strict=True)
            if any(stop_on):
                return None
            if any(no_room_on):
                self.rows = max(1, self.rows // 2)
                if self.run.is_main:
                    log.warning("no room on the GPU: the evaluation goes on with %d rows at once", self.rows)
                continue
            if mine and values is not None:
                measured.append({"item": np.asarray(mine, dtype=np.float64), **values})
            first += len(verdicts) * self.rows
        everything = [values for rank in gather(measured) for values in rank]
        return {value: np.concatenate([values[value] for values in everything]) for value in everything[0]}

    def _measured(self, trainer: Engine, model: Any, batch: dict[str, Any]) -> Values | None:
        """Of one batch of this rank; None where there was no room for it, but for less."""
        batch = trainer._prepare_inputs(batch)
        batch.pop("tokens")
        try:
            with torch.no_grad(), trainer.compute_loss_context_manager():
                measured = trainer.measured(model, batch)
                return {name: value.double().cpu().numpy() for name, value in measured.items()}
        except RuntimeError as error:
            if not gpumemory.is_out_of_memory(error) or self.rows == 1 or self.run.job.training.parallelism == "fsdp":
                setattr(error, gpumemory.ROWS, self.rows)
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def _logged(state: Any) -> bool:
    """Whether an evaluation of the last step is in the log."""
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)


def summary(of: Callable[[Values], dict[str, float]], found: dict[str, Values]) -> dict[str, float]:
    """Of all splits together, and of each where there are several."""
    names = next(iter(found.values()))
    total = {name: np.concatenate([values[name] for values in found.values()]) for name in names}
    each = {name.replace("-", "_"): values for name, values in found.items()} if len(found) > 1 else {}
    return {
        f"{split}_{metric}": value
        for split, values in ({PREFIX: total} | each).items()
        for metric, value in of(values).items()
    }
