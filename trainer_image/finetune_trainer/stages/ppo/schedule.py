"""Which step learns from which rollout, and from which of its rows: a function of the step, like `data.order`.

Used by the trainer. Steps come in rollouts of ``epochs x minibatches`` each: a step's number says all there is to know,
so a run goes on anywhere, on any number of ranks.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.data import order


@dataclass(frozen=True)
class Schedule:
    """Of one job."""

    prompts: int
    """There are so many."""
    rollout_batch: int
    """Prompts answered in one rollout; a multiple of ``global_batch``."""
    global_batch: int
    """Answers learned from in one step."""
    epochs: int
    """Passes over a rollout."""
    seed: int

    @property
    def steps_per_rollout(self) -> int:
        return self.epochs * self.minibatches

    @property
    def minibatches(self) -> int:
        """Steps of one pass over a rollout."""
        return self.rollout_batch // self.global_batch

    @property
    def items(self) -> int:
        """Answers learned from in one pass over all prompts: what the trainer counts its epochs by."""
        return self._rollouts_per_pass * self.rollout_batch * self.epochs

    def rollout(self, step: int) -> int:
        """Number of the rollout that a step learns from."""
        return step // self.steps_per_rollout

    def prompts_of(self, rollout: int) -> list[int]:
        """Its prompts, in the order of its rows."""
        cycle, number = divmod(rollout, self._rollouts_per_pass)
        everything = order.epoch_order(self.prompts, self.rollout_batch, self.seed, cycle)
        return everything[number * self.rollout_batch :][: self.rollout_batch]

    def rows_of(self, step: int) -> list[int]:
        """The rows of its rollout that a step learns from: each pass has them in another order."""
        rollout, within = divmod(step, self.steps_per_rollout)
        epoch, minibatch = divmod(within, self.minibatches)
        rows = list(range(self.rollout_batch))
        random.Random(f"rollout:{self.seed}:{rollout}:{epoch}").shuffle(rows)
        return rows[minibatch * self.global_batch :][: self.global_batch]

    @property
    def _rollouts_per_pass(self) -> int:
        return order.steps_per_epoch(self.prompts, self.rollout_batch)


def dealt(rows: Sequence[int], lengths: Sequence[int], size: int, rank: int, world: int) -> list[list[int]]:
    """A rank's part of some rows, in batches of at most ``size``: the longest first, so that batches hold little
    padding and what doesn't fit into memory shows at once. All ranks get as many batches."""
    in_order = sorted(rows, key=lambda row: (-lengths[row], row))
    mine = in_order[rank::world]
    return [mine[first : first + size] for first in range(0, len(mine), size)]
