"""What is logged of the steps since the last line of the log: sums and counts, over micro-batches, ranks and steps.

Filled by the engine and its stages, read by its log. A line may be interrupted: what it had by then is in the
checkpoint, so that the run that goes on from there, on any number of ranks, writes the line that would have been.
"""

from typing import Any

import numpy as np
import torch

from finetune_trainer.stages.agree import share

Number = torch.Tensor | float


class Noted:
    """Of one run. What is noted is noted on all ranks, under the same names."""

    def __init__(self) -> None:
        self._mine: dict[str, tuple[Number, Number]] = {}
        self._all: dict[str, tuple[float, float]] = {}
        """Of all ranks, and the same on each."""

    def add(self, name: str, total: Number, count: Number) -> None:
        """Of this rank's micro-batch."""
        before = self._mine.get(name, (0.0, 0.0))
        # Tensors stay where they are until a line is due: a GPU isn't waited for.
        now = total.detach() if isinstance(total, torch.Tensor) else total
        self._mine[name] = (before[0] + now, before[1] + count)

    def add_for_all(self, name: str, value: float) -> None:
        """What all ranks agree in, of one step. Were it noted by each, a step of more ranks would weigh more, in a
        line that a run on fewer goes on with."""
        total, count = self._all.get(name, (0.0, 0.0))
        self._all[name] = (total + value, count + 1)

    def settle(self, device: torch.device) -> None:
        """Let all ranks know what any of them has noted. On all of them."""
        names = sorted(self._mine)
        mine = [float(value) for name in names for value in self._mine[name]]
        if not names:
            return
        sums = np.sum(share(mine, device), axis=0).tolist()
        for name, total, count in zip(names, sums[::2], sums[1::2], strict=True):
            before = self._all.get(name, (0.0, 0.0))
            self._all[name] = (before[0] + total, before[1] + count)
        self._mine = {}

    def means(self, device: torch.device) -> dict[str, float]:
        """The line, which then begins anew. On all ranks."""
        self.settle(device)
        means = {name: total / count for name, (total, count) in self._all.items() if count}
        self._all = {}
        return means

    def state_dict(self) -> dict[str, Any]:
        return {name: list(sums) for name, sums in self._all.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._all = {name: (total, count) for name, (total, count) in state.items()}
