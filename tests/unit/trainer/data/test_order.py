"""The order of rows is a function of seed and epoch, with every row and full steps."""

from collections import Counter

import numpy as np
import pytest
from finetune_trainer.data.order import EpochOrder, epoch_order, longest_first, steps_per_epoch, total_steps
from hypothesis import given
from hypothesis import strategies as st

ROWS = st.integers(1, 300)
BATCH = st.integers(1, 40)
SEED = st.integers(0, 2**31 - 1)
EPOCH = st.integers(0, 50)


@given(ROWS, BATCH, SEED, EPOCH)
def test_an_epoch_has_every_row_and_full_steps(rows: int, batch: int, seed: int, epoch: int) -> None:
    order = epoch_order(rows, batch, seed, epoch).tolist()
    assert len(order) == steps_per_epoch(rows, batch) * batch
    assert sorted(order[:rows]) == list(range(rows))
    counts = Counter(order)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert order[rows:] == (order * (len(order) // rows + 1))[: len(order) - rows]


@given(ROWS, BATCH, SEED, EPOCH)
def test_it_is_the_same_each_time(rows: int, batch: int, seed: int, epoch: int) -> None:
    assert epoch_order(rows, batch, seed, epoch).tolist() == epoch_order(rows, batch, seed, epoch).tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(epoch_order(50, 8, seed, epoch).tolist()) for seed in (1, 2, 11) for epoch in (0, 1, 2, 12)]
    assert len(set(orders)) == len(orders)


@given(ROWS, BATCH, SEED)
def test_a_run_may_resume_at_any_step(rows: int, batch: int, seed: int) -> None:
    """The rows of a step are those of its place in its epoch, whichever step is asked for first."""
    steps = 2 * steps_per_epoch(rows, batch) + 1
    straight, backwards = (EpochOrder(rows, batch, seed) for _ in range(2))
    forward = [straight.rows(step).tolist() for step in range(steps)]
    assert forward == [backwards.rows(step).tolist() for step in reversed(range(steps))][::-1]
    epochs = [epoch_order(rows, batch, seed, epoch).tolist() for epoch in range(3)]
    assert [row for step in forward for row in step] == [row for epoch in epochs for row in epoch][: steps * batch]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=100), BATCH, SEED)
def test_sorting_by_length_keeps_the_rows_of_a_step(lengths: list[int], batch: int, seed: int) -> None:
    step = EpochOrder(len(lengths), batch, seed).rows(0)
    ordered = step[longest_first(step, np.array(lengths))].tolist()
    assert Counter(ordered) == Counter(step.tolist())
    assert [lengths[row] for row in ordered] == sorted((lengths[row] for row in ordered), reverse=True)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"), [(1.0, None, 3), (2.5, None, 8), (0.1, None, 1), (None, 7, 7)]
)
def test_total_steps(epochs: float | None, max_steps: int | None, expected: int) -> None:
    assert total_steps(21, 8, epochs, max_steps) == expected
