"""The order in which rows are trained: a function of seed and epoch, and with groupByLength of the rows' lengths.

The trainer takes the rows of each step from it, and `micro_batches` deals them to ranks and micro-batches. Step s of a
job has the same set of rows on any number of ranks, with any micro-batch and in any attempt, so a run can resume at any
step, and every step has the same number of rows.
"""

import math

import numpy as np
import numpy.typing as npt

from finetune_trainer.data.shuffle import Rows, permutation

POOL = 50
"""Number of steps whose rows are sorted by length together: enough for neighbours of similar length, few enough to
keep the order random."""


def steps_per_epoch(rows: int, global_batch: int) -> int:
    """Optimizer steps of a pass over the data; the last step is filled up."""
    return math.ceil(rows / global_batch)


def total_steps(rows: int, global_batch: int, epochs: float | None, max_steps: int | None) -> int:
    """Optimizer steps of the whole job. Exactly one of ``epochs`` and ``max_steps`` is not None."""
    if max_steps is not None:
        return max_steps
    assert epochs is not None
    # Rounded, because 1.1 * 10 is slightly more than 11 in floating point.
    return max(1, math.ceil(round(epochs * steps_per_epoch(rows, global_batch), 6)))


def epoch_order(rows: int, global_batch: int, seed: int, epoch: int) -> Rows:
    """The rows of an epoch: a permutation, filled up from its own start to a multiple of the global batch."""
    return np.resize(permutation(rows, f"order:{seed}:{epoch}"), steps_per_epoch(rows, global_batch) * global_batch)


def longest_first(step: Rows, lengths: npt.NDArray[np.integer]) -> Rows:
    """Indices into the rows of a step, sorted by length: the first micro-batch, whose rows are the longest, shows at
    once if the GPU has too little memory. The sum over a global batch does not depend on the order within it."""
    return np.lexsort((step, -lengths[step].astype(np.int64)))


def grouped_by_length(order: Rows, lengths: npt.NDArray[np.integer], global_batch: int, seed: int, epoch: int) -> Rows:
    """The same rows, in steps of rows with similar lengths, at the cost of an order that is not fully random. The step
    with the longest row comes first, so that a lack of memory shows at once."""
    pools = []
    for start in range(0, len(order), POOL * global_batch):
        pool = order[start : start + POOL * global_batch]
        # Sorting is stable: rows of equal length keep their random order, so their neighbours change each epoch.
        pools.append(pool[np.argsort(-lengths[pool].astype(np.int64), kind="stable")])
    steps = np.concatenate(pools).reshape(-1, global_batch)
    steps = steps[permutation(len(steps), f"groups:{seed}:{epoch}")]
    longest = int(lengths[steps[:, 0]].argmax())
    return np.concatenate([steps[longest : longest + 1], steps[:longest], steps[longest + 1 :]]).reshape(-1)


class EpochOrder:
    """The rows of each step, epoch after epoch. It holds the order of the last epoch that was asked for."""

    def __init__(
        self, rows: int, global_batch: int, seed: int, group_by: npt.NDArray[np.integer] | None = None
    ) -> None:
        """``group_by``: lengths of the rows, with groupByLength."""
        self._count, self._global_batch, self._seed, self._group_by = rows, global_batch, seed, group_by
        self._steps = steps_per_epoch(rows, global_batch)
        self._epoch: int | None = None
        self._rows = np.empty(0, dtype=np.int64)

    def rows(self, step: int) -> Rows:
        """[global batch]: the rows of a step, from 0."""
        epoch, number = divmod(step, self._steps)
        if epoch != self._epoch:
            rows = epoch_order(self._count, self._global_batch, self._seed, epoch)
            if self._group_by is not None:
                rows = grouped_by_length(rows, self._group_by, self._global_batch, self._seed, epoch)
            self._epoch, self._rows = epoch, rows
        return self._rows[number * self._global_batch :][: self._global_batch]
