"""Evaluation of the model on the splits that are not trained on, with the metrics of the stage.

Called by `loop` between optimizer steps and after the last. A stage defines the values of a batch and the metrics of a
split (`BaseTrainer.evaluation_step` and `evaluation_metrics`), so metrics depend neither on the number of ranks nor on
the micro-batch. An evaluation changes nothing of the training's state.

If the GPU has no room for a batch, all ranks repeat it with half as many rows, and keep that size: rows here may be
longer than any row of training, whose micro-batch stays. Sharded weights are the exception: there the other ranks
already wait in a collective for the rank that had no room.
"""

import logging
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn
from transformers import TrainerState

from finetune_trainer.collectives import all_gather, all_gather_objects
from finetune_trainer.data.collate import Batch
from finetune_trainer.data.datasets import Dataset
from finetune_trainer.model import sharding
from finetune_trainer.run import Run
from finetune_trainer.runtime import gpumemory, heartbeat
from finetune_trainer.training.trainer import BaseTrainer, EvaluationValues

log = logging.getLogger(__name__)

PREFIX = "eval"
"""Of splits and metrics: ``eval_loss`` is over all splits; with several, ``eval_1_loss`` is of the first."""


class Evaluation:
    """The evaluation of one run. ``report_alive`` is called before each batch."""

    def __init__(self, run: Run, splits: Mapping[str, Dataset], report_alive: Callable[[], None]) -> None:
        self.run, self.splits, self.report_alive = run, splits, report_alive
        self.micro_batch = run.micro_batch
        """What a rank holds in a forward pass."""
        self.metrics: dict[str, float] = {}
        """Metrics of the last complete evaluation."""
        self.values: dict[str, EvaluationValues] = {}
        """Split -> the values that ``metrics`` were computed from."""

    def is_due(self, state: TrainerState) -> bool:
        """Whether to evaluate before the next step. A resumed run may have done so before it was saved."""
        spec = self.run.job.evaluation
        if not self.splits or spec is None or spec.every_steps is None or not state.global_step:
            return False
        return state.global_step % spec.every_steps == 0 and not _is_logged(state)

    def evaluate(self, trainer: BaseTrainer, *, write_log: bool = True) -> bool:
        """Evaluate and log, unless the log of the run that this one resumes has it already. Called by all ranks.
        Returns False, and logs nothing, if the ranks agreed to stop."""
        if not self.splits:
            return True
        start = time.monotonic()
        values = self.split_values(trainer, self.splits)
        if values is None:
            log.warning("The run has to stop. The evaluation after step %d is skipped.", trainer.state.global_step)
            return False
        metrics = metrics_of_splits(trainer.evaluation_metrics, values)
        if write_log and not _is_logged(trainer.state):
            trainer.log(dict(metrics))
        self.values = values
        self.metrics = metrics | {
            "eval_samples": sum(len(dataset) for dataset in self.splits.values()),
            "eval_runtime": round(time.monotonic() - start, 2),
        }
        return True

    def split_values(self, trainer: BaseTrainer, splits: Mapping[str, Dataset]) -> dict[str, EvaluationValues] | None:
        """Split -> values of all its samples. Called by all ranks; None if they agreed to stop."""
        by_split: dict[str, EvaluationValues] = {}
        # Without DDP: it exchanges buffers in each forward pass, and a rank without room might not take part.
        model = trainer.model
        model.eval()
        try:
            for name, dataset in splits.items():
                values = self._values(trainer, model, dataset)
                if values is None:
                    break
                by_split[name] = values
        finally:
            model.train()
            sharding.reshard(model)
        heartbeat.beat("train", trainer.state.global_step)  # not after an error, which is reported with its phase
        return by_split if len(by_split) == len(splits) else None

    def _values(self, trainer: BaseTrainer, model: nn.Module, dataset: Dataset) -> EvaluationValues | None:
        """Values of a split from all ranks, and as ``item`` the index of each sample. None if the ranks agreed to
        stop."""
        # Longest first: a batch without room on the GPU fails at once.
        order = np.argsort(-dataset.lengths.astype(np.int64), kind="stable").tolist()
        # [samples]: most tokens of a sample from here on.
        largest = np.maximum.accumulate(dataset.tokens[order][::-1])[::-1].tolist()
        indices = trainer.indices(range(len(dataset)))
        local: list[EvaluationValues] = []
        first = 0
        while first < len(order):
            self.report_alive()
            heartbeat.beat("evaluate", trainer.state.global_step)
            size = self.micro_batch.rows(largest[first])
            mine = order[first + self.run.rank * size :][:size]
            # A rank without samples left still takes part: sharded weights are gathered by all ranks or by none.
            batch = dataset.batch([indices[sample] for sample in mine or order[-1:]])
            values = self._batch_values(trainer, model, batch, size)
            verdicts = all_gather([self.run.stop_requested(), values is None], trainer.args.device)
            stop_by_rank, no_room_by_rank = zip(*verdicts, strict=True)
            if any(stop_by_rank):
                return None
            if any(no_room_by_rank):
                self.micro_batch = self.micro_batch._replace(size=max(1, self.micro_batch.size // 2))
                if self.run.is_main:
                    rows = self.micro_batch.rows(largest[first])
                    log.warning("The GPU has no room. The evaluation continues with %d rows at once.", rows)
                continue
            if mine and values is not None:
                local.append({"item": np.asarray(mine, dtype=np.float64), **values})
            first += len(verdicts) * size
        batches = [values for rank in all_gather_objects(local) for values in rank]
        return {name: np.concatenate([values[name] for values in batches]) for name in batches[0]}

    def _batch_values(self, trainer: BaseTrainer, model: nn.Module, batch: Batch, size: int) -> EvaluationValues | None:
        """Values of one batch of this rank, of at most ``size`` samples. None if the GPU has no room for it and the
        batch can be smaller."""
        batch = trainer._prepare_inputs(batch)
        try:
            with torch.no_grad(), trainer.compute_loss_context_manager():
                values = trainer.evaluation_step(model, batch)
                return {name: value.double().cpu().numpy() for name, value in values.items()}
        except RuntimeError as error:
            smallest = size == 1 or self.run.job.training.parallelism == "fsdp"
            if not gpumemory.is_out_of_memory(error) or smallest:
                setattr(error, gpumemory.ROWS, size)
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def _is_logged(state: TrainerState) -> bool:
    """Whether the log has an evaluation of the last step."""
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)


def metrics_of_splits(
    compute: Callable[[EvaluationValues], dict[str, float]], by_split: Mapping[str, EvaluationValues]
) -> dict[str, float]:
    """Metrics of all splits together, and of each if there are several."""
    names = next(iter(by_split.values()))
    together = {name: np.concatenate([values[name] for values in by_split.values()]) for name in names}
    each = {split.replace("-", "_"): values for split, values in by_split.items()} if len(by_split) > 1 else {}
    return {
        f"{split}_{metric}": value
        for split, values in ({PREFIX: together} | each).items()
        for metric, value in compute(values).items()
    }
