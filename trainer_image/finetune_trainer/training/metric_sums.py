"""Training metrics since the last line of the log: sums and counts, over micro-batches, ranks and steps.

The stage's trainer adds to them, `BaseTrainer.log` reads them. A checkpoint may fall between two lines of the log. It
has the sums, so a run that resumes from it, on any number of ranks, writes the line that the first run would have
written.
"""

import numpy as np
import torch

from finetune_trainer.collectives import all_gather

Number = torch.Tensor | float


class MetricSums:
    """The sums of one run. All ranks add the same names."""

    def __init__(self) -> None:
        self._local: dict[str, tuple[Number, Number]] = {}
        """Name -> (sum, count) of this rank, since the last `reduce`."""
        self._global: dict[str, tuple[float, float]] = {}
        """Name -> (sum, count) of all ranks, the same on each."""

    def add(self, name: str, total: Number, count: Number) -> None:
        """Add the sum and count of a micro-batch of this rank."""
        total_before, count_before = self._local.get(name, (0.0, 0.0))
        # Tensors stay on their device until a line is due, so that no step waits for the GPU.
        detached = total.detach() if isinstance(total, torch.Tensor) else total
        self._local[name] = (total_before + detached, count_before + count)

    def add_global(self, name: str, value: float) -> None:
        """Add a step's value that is the same on all ranks. It counts once, not once per rank: the weight of a step
        must not depend on the number of ranks, because a run may resume on fewer."""
        total, count = self._global.get(name, (0.0, 0.0))
        self._global[name] = (total + value, count + 1)

    def reduce(self, device: torch.device) -> None:
        """Sum over ranks. Called by all of them."""
        names = sorted(self._local)
        local = [float(value) for name in names for value in self._local[name]]
        if not names:
            return
        sums = np.sum(all_gather(local, device), axis=0).tolist()
        for name, total, count in zip(names, sums[::2], sums[1::2], strict=True):
            total_before, count_before = self._global.get(name, (0.0, 0.0))
            self._global[name] = (total_before + total, count_before + count)
        self._local = {}

    def means(self, device: torch.device) -> dict[str, float]:
        """The metrics of a line of the log; the next line starts from zero. Called by all ranks."""
        self.reduce(device)
        means = {name: total / count for name, (total, count) in self._global.items() if count}
        self._global = {}
        return means

    def state_dict(self) -> dict[str, list[float]]:
        return {name: list(sums) for name, sums in self._global.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self._global = {name: (total, count) for name, (total, count) in state.items()}
