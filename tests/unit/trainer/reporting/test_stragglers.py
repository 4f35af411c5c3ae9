"""Which rank is named as a straggler: a slow one soon, an even one never, and until it recovers."""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest
from finetune_trainer.reporting.stragglers import Stragglers, _by_others

RANKS_ON_NODE = 2
SLOWED = 1.3


def times(ranks: int, steps: int, *, jitter: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and tokens of each step and rank, as even ranks have them: all of a step differ together, each rank has
    noise and drifts, now and then a rank takes several times as long, and rows are never dealt evenly."""
    random = np.random.default_rng(seed)
    tokens = 1000 * random.uniform(0.95, 1.05, (steps, ranks))
    drift = 0.015 * np.sin(np.arange(steps)[:, None] / 300 + random.uniform(0, 6, ranks))
    together = random.normal(0, 0.1, (steps, 1))
    own = np.exp(together + drift + random.normal(0, jitter, (steps, ranks))) * tokens / 1000
    return own * np.where(random.random((steps, ranks)) < 0.01, random.uniform(1.5, 5, (steps, ranks)), 1), tokens


@pytest.mark.parametrize(("ranks", "jitter"), [(2, 0.03), (2, 0.06), (4, 0.06), (16, 0.1)])
def test_a_rank_slowed_by_30_percent_is_named_within_20_steps(ranks: int, jitter: float) -> None:
    for seed in range(10):
        seconds, tokens = times(ranks, 120, jitter=jitter, seed=seed)
        slow, begins = seed % ranks, 60
        seconds[begins:, slow] *= SLOWED
        watched, named = Stragglers(ranks, RANKS_ON_NODE), 0
        for step in range(120):
            watched.step(step + 1, seconds[step], tokens[step])
            slowest = watched.slowest
            if slowest and slowest.since_step and not named:
                named = step
                assert (slowest.rank, slowest.node_rank) == (slow, slow // RANKS_ON_NODE)
                assert abs(slowest.since_step - begins) <= 10
        assert begins <= named < begins + 20, seed


@pytest.mark.parametrize(("ranks", "jitter"), [(2, 0.06), (8, 0.06), (16, 0.1)])
def test_of_even_ranks_none_is_named_in_10_000_steps(ranks: int, jitter: float) -> None:
    seconds, tokens = times(ranks, 10_000, jitter=jitter, seed=ranks)
    watched = Stragglers(ranks, RANKS_ON_NODE)
    for step in range(10_000):
        watched.step(step + 1, seconds[step], tokens[step])
        assert watched.slowest is None or watched.slowest.since_step is None


def test_a_rank_that_recovers_is_no_straggler_any_more() -> None:
    watched = Stragglers(4, RANKS_ON_NODE)
    for step in range(60):
        watched.step(step + 1, [1.0, 1.0, 1.0, 1.4 if step < 30 else 1.0], [1000] * 4)
        if step == 29:
            assert watched.slowest is not None
            assert (watched.slowest.rank, watched.slowest.ratio, watched.slowest.stragglers) == (3, "1.40", 1)
    assert watched.slowest is not None
    assert (watched.slowest.since_step, watched.slowest.stragglers) == (None, None)


def test_a_rank_with_more_tokens_is_no_straggler() -> None:
    watched = Stragglers(2, RANKS_ON_NODE)
    for step in range(40):
        watched.step(step + 1, [1.0, 1.5], [1000, 1500])
    assert watched.slowest is not None
    assert watched.slowest.since_step is None


def test_all_ranks_of_a_slow_node_are_counted() -> None:
    watched = Stragglers(8, RANKS_ON_NODE)
    for step in range(40):
        watched.step(step + 1, [1, 1, 1, 1, 1.3, 1.35, 1, 1], [1000] * 8)
    assert watched.slowest is not None
    assert (watched.slowest.rank, watched.slowest.node_rank, watched.slowest.stragglers) == (5, 2, 2)


def test_a_rank_alone_or_a_step_without_a_measurement_says_nothing() -> None:
    alone, unmeasured = Stragglers(1, 1), Stragglers(2, 1)
    for step in range(40):
        alone.step(step + 1, [1.0], [1000])
        unmeasured.step(step + 1, [1.0, -1.0], [1000, 1000])
    assert alone.slowest is None
    assert unmeasured.slowest is None


@pytest.mark.parametrize("values", [[1, 2], [3, 1, 2], [4, 1, 3, 2], [1, 1, 1, 5], [2, 2, 2]])
def test_a_value_is_compared_with_the_median_of_the_others(values: list[float]) -> None:
    others = [median([*values[:rank], *values[rank + 1 :]]) for rank in range(len(values))]
    expected = [value / other for value, other in zip(values, others, strict=True)]
    assert _by_others(np.array(values, dtype=float)).tolist() == pytest.approx(expected)
