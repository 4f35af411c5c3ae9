"""The order of rows is a function of (seed, epoch), whole and even."""

from collections import Counter

import pytest
from finetune_trainer.data.order import epoch_order, places_by_length, steps_per_epoch, total_steps
from hypothesis import given
from hypothesis import strategies as st

ROWS = st.integers(1, 300)
BATCH = st.integers(1, 40)
SEED = st.integers(0, 2**31 - 1)
EPOCH = st.integers(0, 50)


@given(ROWS, BATCH, SEED, EPOCH)
def test_every_row_is_there_and_every_step_is_full(rows: int, batch: int, seed: int, epoch: int) -> None:
    order = epoch_order(rows, batch, seed, epoch)
    assert len(order) == steps_per_epoch(rows, batch) * batch
    assert sorted(order[:rows]) == list(range(rows))
    counts = Counter(order)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert order[rows:] == (order * (len(order) // rows + 1))[: len(order) - rows]


@given(ROWS, BATCH, SEED, EPOCH)
def test_it_is_the_same_each_time(rows: int, batch: int, seed: int, epoch: int) -> None:
    assert epoch_order(rows, batch, seed, epoch) == epoch_order(rows, batch, seed, epoch)


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(epoch_order(50, 8, seed, epoch)) for seed in (1, 2, 11) for epoch in (0, 1, 2, 12)]
    assert len(set(orders)) == len(orders)


def test_it_never_changes_between_versions() -> None:
    # A job that is resumed by a newer trainer must go on in the order it began with.
    assert epoch_order(10, 4, 42, 0) == [3, 0, 8, 7, 6, 1, 9, 2, 5, 4, 3, 0]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=100), BATCH, SEED)
def test_sorting_by_length_keeps_each_steps_rows(lengths: list[int], batch: int, seed: int) -> None:
    order = epoch_order(len(lengths), batch, seed, 0)
    ordered = [order[place] for place in places_by_length(order, lengths, batch)]
    for start in range(0, len(order), batch):
        step = ordered[start : start + batch]
        assert Counter(step) == Counter(order[start : start + batch])
        assert [lengths[row] for row in step] == sorted((lengths[row] for row in step), reverse=True)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"), [(1.0, None, 3), (2.5, None, 8), (0.1, None, 1), (None, 7, 7)]
)
def test_total_steps(epochs: float | None, max_steps: int | None, expected: int) -> None:
    assert total_steps(21, 8, epochs, max_steps) == expected
