"""Which row is trained when: a function of seed and epoch, and with groupByLength of the rows' lengths.

Used by the trainer's sampler. Step s of a job sees the same set of rows on any number of ranks, with any micro-batch
and in any attempt, so a run can be resumed anywhere, and every step has the same number of rows.
"""

import math
import random
from collections.abc import Sequence

POOL = 50
"""Steps whose rows are sorted by length together: enough for like neighbours, few enough to stay random."""


def steps_per_epoch(rows: int, global_batch: int) -> int:
    """Optimizer steps of one pass; the last is filled up."""
    return math.ceil(rows / global_batch)


def total_steps(rows: int, global_batch: int, epochs: float | None, max_steps: int | None) -> int:
    """Optimizer steps of the whole job; exactly one of ``epochs`` and ``max_steps`` is given."""
    if max_steps is not None:
        return max_steps
    assert epochs is not None
    # Rounded: 1.1 * 10 is a little more than 11 to a computer.
    return max(1, math.ceil(round(epochs * steps_per_epoch(rows, global_batch), 6)))


def epoch_order(rows: int, global_batch: int, seed: int, epoch: int) -> list[int]:
    """The rows of one epoch: a permutation, filled up from its own start to a multiple of the global batch."""
    order = list(range(rows))
    random.Random(f"order:{seed}:{epoch}").shuffle(order)
    length = steps_per_epoch(rows, global_batch) * global_batch
    return (order * math.ceil(length / rows))[:length]


def places_by_length(order: Sequence[int], lengths: Sequence[int], global_batch: int) -> list[int]:
    """The places of an order, so that each step has its rows sorted by length: micro-batches then hold little padding.
    The sum over a global batch doesn't depend on the order within it."""
    result: list[int] = []
    for start in range(0, len(order), global_batch):
        step = range(start, min(start + global_batch, len(order)))
        result += sorted(step, key=lambda place: (-lengths[order[place]], order[place]))
    return result


def grouped_by_length(
    order: Sequence[int], lengths: Sequence[int], global_batch: int, seed: int, epoch: int
) -> list[int]:
    """The same rows, cut into steps of rows of like length: little padding on any rank, at the cost of an order that is
    not wholly random. The step with the longest row comes first, so that what doesn't fit into memory shows at once."""
    steps: list[list[int]] = []
    for start in range(0, len(order), POOL * global_batch):
        # Rows of one length stay in the order that they came in, so they too share a step with others each epoch.
        pool = sorted(order[start : start + POOL * global_batch], key=lambda row: -lengths[row])
        steps += [pool[first : first + global_batch] for first in range(0, len(pool), global_batch)]
    random.Random(f"groups:{seed}:{epoch}").shuffle(steps)
    longest = max(range(len(steps)), key=lambda step: lengths[steps[step][0]])
    steps.insert(0, steps.pop(longest))
    return [row for step in steps for row in step]
