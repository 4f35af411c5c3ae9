"""On CPUs: score only the positions that are trained.

TRL's fused head does so on GPUs; elsewhere it scores every position, padding and prompts included, which for a small
model is a good part of a step. Here the backbone's output is reduced to the trained positions before the head sees it,
by a hook, so that the head with all its variants (soft caps, scales) stays TRL's.
"""

from typing import Any

import torch
from torch import nn

from finetune_trainer.data.row import IGNORED


class TrainedPositions:
    """Installed on a model that has TRL's fused head; `inputs` prepares each micro-batch."""

    def __init__(self, model: nn.Module) -> None:
        self._mask: torch.Tensor | None = None
        backbone = model.base_model
        assert isinstance(backbone, nn.Module)
        backbone.register_forward_hook(self._reduce)

    def inputs(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The micro-batch with labels for the trained positions alone. Each is predicted from the position before; in
        packed rows the first token of a document has no label."""
        labels = batch["labels"][:, 1:]
        self._mask = labels != IGNORED
        rest = {name: value for name, value in batch.items() if name != "labels"}
        return {**rest, "shift_labels": labels[self._mask].unsqueeze(0)}

    def _reduce(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if self._mask is not None:
            output.last_hidden_state = output.last_hidden_state[:, :-1][self._mask].unsqueeze(0)
            self._mask = None
        return output
