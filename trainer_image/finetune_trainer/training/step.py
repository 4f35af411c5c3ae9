"""What transformers counts as the samples of a step, and what is known of the step that is under way."""

from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset as TorchDataset


@dataclass
class StepStats:
    """Statistics of the current optimizer step. `BaseTrainer` fills them, `loop` reads them."""

    losses: list[torch.Tensor] = field(default_factory=list)
    """[micro-batches of this rank]. Their sum, averaged over ranks, is the loss of the step."""
    grad_norm: torch.Tensor | float = 0.0
    tokens: int = 0
    """Tokens of all ranks, without padding."""
    tokens_by_rank: list[float] = field(default_factory=list)
    denominators: list[float] = field(default_factory=list)
    """`BaseTrainer.loss_denominators`, summed over the micro-batches of all ranks."""
    micro_batches: int = 1
    """Micro-batches of all ranks."""


class IndexDataset(TorchDataset[int]):
    """The dataset that transformers gets: it counts samples. `BaseTrainer.step_batches` reads the rows."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index
