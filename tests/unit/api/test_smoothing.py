"""The smoothed line of plots."""

from __future__ import annotations

import math
import random

import pytest
from finetune_api.smoothing import smoothed, window
from hypothesis import given, settings
from hypothesis import strategies as st

QUICK = settings(max_examples=30, deadline=None)
FINITE = st.lists(st.floats(-1e6, 1e6), max_size=40)


def test_the_window_fits_the_number_of_points() -> None:
    assert [window(count) for count in (0, 1, 2, 3, 5, 17, 100, 1000)] == [1, 1, 1, 3, 3, 5, 11, 33]
    assert all(window(count) % 2 and window(count) <= max(count, 1) for count in range(500))


@QUICK
@given(st.integers(1, 400), st.floats(-10, 10), st.floats(-100, 100))
def test_a_straight_line_stays_as_it_is(count: int, slope: float, start: float) -> None:
    """So the smoothed line of a falling loss has no lag, also at both ends."""
    line = [start + slope * place for place in range(count)]
    assert smoothed(line) == pytest.approx(line, abs=1e-9)


@QUICK
@given(FINITE)
def test_the_line_lies_within_the_points(values: list[float]) -> None:
    line = smoothed(values)
    assert len(line) == len(values)
    assert all(min(values) <= value <= max(values) for value in line)


@QUICK
@given(FINITE)
def test_the_line_of_the_way_back_is_the_way_back_of_the_line(values: list[float]) -> None:
    """It favours neither the past nor the future."""
    assert smoothed(values[::-1]) == pytest.approx(smoothed(values)[::-1], abs=1e-6)


def test_17_points_of_a_falling_loss_lie_on_both_sides_of_the_line() -> None:
    chance = random.Random(1)
    losses = [0.1 + 4.1 * math.exp(-step / 5) + chance.gauss(0, 0.1) for step in range(17)]
    above = sum(loss > line for loss, line in zip(losses, smoothed(losses), strict=True))
    assert 5 <= above <= 12


@pytest.mark.parametrize("count", [30, 300, 3000])
def test_noise_is_less_and_the_ends_are_smooth_too(count: int) -> None:
    chance = random.Random(2)
    noise = [chance.gauss(0, 1) for _ in range(count)]
    line = smoothed(noise)
    assert math.hypot(*line) < 1.3 * math.hypot(*noise) / math.sqrt(window(count))
    assert abs(line[-1]) < abs(max(noise[-window(count) :], key=abs))


def test_what_is_not_a_number_stays_and_does_not_count() -> None:
    values = [4.0, 3.0, math.nan, 2.0, math.inf, 1.0, 0.0]
    line = smoothed(values)
    assert [value for value in line if math.isfinite(value)] == pytest.approx([4.0, 3.0, 2.0, 1.0, 0.0])
    assert (math.isnan(line[2]), line[4]) == (True, math.inf)
    assert smoothed([]) == []
