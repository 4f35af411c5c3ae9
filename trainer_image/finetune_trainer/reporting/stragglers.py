"""Which rank computes slower than the others, and since when. The others wait for it in every step.

Each rank measures its own time in a step, without the time in which it waits for others (`training.own_time`). All
ranks share it in the exchange that ends a step anyway. `Stragglers` compares each rank with the median of the others,
and decides by the mean of the middle half of the last steps: neither a single slow step (a page cache that is flushed,
a garbage collection) nor noise makes a straggler.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from finetune_api.status import SlowestRank

WINDOW = 16
"""Steps that decide."""
ENOUGH = 12
"""Steps before which nothing is decided."""
WARM_UP = 3
"""Steps of a run that say nothing: kernels are compiled and chosen, caches are filled."""
SLOW, EVEN = 1.18, 1.10
"""Ratios from which on a rank is a straggler, and below which it no longer is."""


class Stragglers:
    """The ratios of all ranks over the last steps, and the ranks that straggle. For rank 0."""

    def __init__(self, ranks: int, ranks_on_node: int) -> None:
        self._ranks, self._ranks_on_node = ranks, ranks_on_node
        self._ratios: list[npt.NDArray[np.float64]] = []
        """[steps][ranks]"""
        self._usual = np.ones(ranks)
        """The ratio of each rank over the last steps."""
        self._since: dict[int, int] = {}
        """Rank -> step since which it straggles."""
        self._to_skip = WARM_UP

    def step(self, step: int, seconds: Sequence[float], tokens: Sequence[float]) -> None:
        """The own time of each rank in a step, and how many tokens it computed. A rank with more tokens may take
        longer, and one with fewer need not be faster, so the smaller ratio of both views counts."""
        if self._ranks < 2 or min(seconds) <= 0:
            return
        if self._to_skip:
            self._to_skip -= 1
            return
        times = np.array(seconds)
        ratios = np.minimum(_by_others(times), _by_others(times / np.maximum(tokens, 1)))
        self._ratios = [*self._ratios, ratios][-WINDOW:]
        if len(self._ratios) < ENOUGH:
            return
        quarter = len(self._ratios) // 4
        self._usual = np.sort(self._ratios, axis=0)[quarter:-quarter].mean(axis=0)
        for rank in np.flatnonzero(self._usual >= SLOW).tolist():
            slow_steps = sum(float(one[rank]) >= SLOW for one in self._ratios)
            self._since.setdefault(rank, max(1, step - slow_steps + 1))
        self._since = {rank: since for rank, since in self._since.items() if self._usual[rank] >= EVEN}

    @property
    def slowest(self) -> SlowestRank | None:
        """The slowest rank, a straggler if there is one; None before enough steps."""
        if len(self._ratios) < ENOUGH:
            return None
        among = list(self._since) or range(self._ranks)
        rank = max(among, key=lambda rank: float(self._usual[rank]))
        return SlowestRank(
            rank=rank,
            node_rank=rank // self._ranks_on_node,
            ratio=f"{self._usual[rank]:.2f}",
            since_step=self._since.get(rank),
            stragglers=len(self._since) or None,
        )


def _by_others(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each value by the median of the others."""
    order, last = np.argsort(values), len(values) - 1
    ordered, places = values[order], np.argsort(order)
    # The middle of the others: one place further if the value itself comes before it.
    low, high = ((ordered[middle + (places <= middle)]) for middle in ((last - 1) // 2, last // 2))
    ratios: npt.NDArray[np.float64] = values / ((low + high) / 2)
    return ratios
