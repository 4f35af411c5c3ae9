"""The number of steps of a job, and the rows of each step."""

from collections import Counter

import numpy as np
import pytest
from finetune_trainer.data import order
from hypothesis import given
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(1, 4096), min_size=1, max_size=400)
BATCHES = st.sampled_from([1, 2, 3, 8])


@pytest.mark.parametrize(
    ("rows", "epochs", "steps"), [(10, 1.1, 11), (10, 1.15, 12), (10, 0.001, 1), (10, 3, 30), (100, 1.1, 110)]
)
def test_epochs_in_steps(rows: int, epochs: float, steps: int) -> None:
    """1.1 * 10 is 11.000000000000002, which must not cost a step."""
    assert order.total_steps(rows, 1, epochs, None) == steps


def grouped(lengths: list[int], global_batch: int, epoch: int = 0, seed: int = 42) -> list[list[int]]:
    """The steps of an epoch."""
    steps = order.steps_per_epoch(len(lengths), global_batch)
    rows = order.EpochOrder(len(lengths), global_batch, seed, np.array(lengths))
    return [rows.rows(epoch * steps + step).tolist() for step in range(steps)]


def padded(steps: list[list[int]], lengths: list[int], micro_batch: int) -> int:
    """Tokens that micro-batches are filled up with, if the rows of a step are dealt the longest first."""
    total = 0
    for step in steps:
        rows = sorted((lengths[row] for row in step), reverse=True)
        for first in range(0, len(rows), micro_batch):
            batch = rows[first : first + micro_batch]
            total += len(batch) * max(batch) - sum(batch)
    return total


@given(LENGTHS, BATCHES)
def test_grouped_by_length_every_row_is_trained_once_per_epoch(lengths: list[int], global_batch: int) -> None:
    steps = grouped(lengths, global_batch)
    assert len(steps) == order.steps_per_epoch(len(lengths), global_batch)
    assert {len(step) for step in steps} == {global_batch}
    # What fills up the last step is what the epoch would fill up with anyway.
    plain = order.epoch_order(len(lengths), global_batch, 42, 0)
    assert Counter(row for step in steps for row in step) == Counter(plain.tolist())


@given(LENGTHS, BATCHES)
def test_grouped_by_length_the_longest_row_comes_in_the_first_step(lengths: list[int], global_batch: int) -> None:
    assert max(lengths[row] for row in grouped(lengths, global_batch)[0]) == max(lengths)


def test_grouped_by_length_pads_much_less_and_stays_mixed() -> None:
    lengths = [1 + (row * 7919) % 1000 for row in range(2000)]
    rows = order.epoch_order(2000, 8, 42, 0).tolist()
    plain = [rows[first : first + 8] for first in range(0, 2000, 8)]
    steps = grouped(lengths, 8)
    assert padded(steps, lengths, 8) < padded(plain, lengths, 8) / 10
    # Long and short steps alternate, and another epoch has other company for each row.
    means = [sum(lengths[row] for row in step) / 8 for step in steps]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)
    assert {frozenset(step) for step in steps}.isdisjoint(frozenset(step) for step in grouped(lengths, 8, epoch=1))
    assert steps == grouped(lengths, 8)
