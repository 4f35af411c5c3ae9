"""NEFTune: uniform noise on the embeddings while training (Jain et al., 2023, arXiv:2310.05914).

The noise of a token shrinks with the square root of its document's length. transformers' own hook would take the length
of the whole stream, so the noise would depend on the micro-batch.
"""

from typing import Any

import torch
from peft import PeftModel
from torch import nn

from finetune_trainer.model.documents import Documents


def add(model: Any, alpha: float) -> None:
    """Add noise of strength ``alpha`` in all forward passes of training from now on. `BaseTrainer` calls it once."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    hooks = _Hooks(alpha)
    base.base_model.register_forward_pre_hook(hooks.remember, with_kwargs=True)
    base.get_input_embeddings().register_forward_hook(hooks.add_noise)


class _Hooks:
    """The first hook learns where documents are, the second adds the noise."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._documents: Documents | None = None

    def remember(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self._documents = kwargs.get("documents")

    def add_noise(self, module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        rows, width, size = output.shape
        lengths = torch.full((rows, width, 1), width, device=output.device)
        if self._documents is not None and (rows, width) == (1, sum(self._documents.lengths)):
            each = self._documents.bounds.diff()
            lengths = torch.repeat_interleave(each, each, output_size=width).reshape(1, width, 1)
        strength = self._alpha / (lengths * size).sqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * strength.to(output.dtype)
