"""On CPUs: the fused head, for the trained positions alone, and with two products of matrices in place of three.

TRL's fused head has a kernel for GPUs. Elsewhere it scores every position, padding and prompts included, and computes
all logits again in the backward pass, which for a small model is a third of a step. Here the backbone's output is
reduced to the trained positions by a hook before the head sees it, and where the head itself isn't trained the slope of
each log-probability is found while its logits are there. All variants (soft caps, biases, experts) stay TRL's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils

from finetune_trainer.data.row import IGNORED

LOGITS = 1 << 24
"""Held at once: 64 MiB."""


class TrainedPositions:
    """Installed on a model that has TRL's fused head; `score` is a forward pass over a micro-batch."""

    def __init__(self, model: nn.Module) -> None:
        self._mask: torch.Tensor | None = None
        backbone = model.base_model
        assert isinstance(backbone, nn.Module)
        backbone.register_forward_hook(self._reduce)

    def score(self, model: nn.Module, batch: dict[str, torch.Tensor], outputs: Sequence[str] = ("log_probs",)) -> Any:
        """What the fused head says of the N trained positions, each [1, N]; ``model`` may be wrapped. Each is predicted
        from the position before; in packed rows the first token of a document has no label. Without a cache: with one,
        packed documents would see each other."""
        labels = batch["labels"][:, 1:]
        self._mask = labels != IGNORED
        rest = {name: value for name, value in batch.items() if name != "labels"}
        with _projected(outputs):
            return model(**rest, shift_labels=labels[self._mask].unsqueeze(0), use_cache=False, fused_lm_head=True)

    def _reduce(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if self._mask is not None:
            output.last_hidden_state = output.last_hidden_state[:, :-1][self._mask].unsqueeze(0)
            self._mask = None
        return output


@contextmanager
def _projected(outputs: Sequence[str]) -> Iterator[None]:
    """TRL's head, with our projection in place of its own."""
    module: Any = utils
    module._ChunkedLogProbFunction = SimpleNamespace(apply=partial(_project, tuple(outputs)))
    try:
        yield
    finally:
        module._ChunkedLogProbFunction = ChunkedLogProbFunction


def _project(
    wanted: tuple[str, ...],
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    temperature: float,
    chunk_size: int,
    softcap: float | None,
    scale: float,
    _outputs: tuple[str, ...],
) -> Any:
    """As TRL's head calls it; but of the outputs that the model was given once, only those ``wanted`` now."""
    theirs: Any = ChunkedLogProbFunction
    trained = torch.is_grad_enabled() and weight.requires_grad
    if trained or bias is not None or softcap is not None:
        return theirs.apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, wanted)
    log_probs, entropy, is_top1 = _Scores.apply(hidden, weight, targets, scale / temperature, wanted)
    return log_probs, entropy, None, None, is_top1


class _Scores(torch.autograd.Function):
    """hidden [N, H], weight [V, H], targets [N], factor of the logits -> log-probabilities of the targets, and where
    they are asked for entropies and whether the targets are the likeliest, each [N].

    With z = factor * hidden @ weight.T and p = softmax(z), the slope of log p_y is factor * (onehot_y - p) @ weight: no
    loss has a part in it, so it needs not wait for the backward pass. Memory: [N, H], and `LOGITS` logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        factor: float,
        outputs: tuple[str, ...],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        computed_in = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        weight, rows = weight.to(computed_in), max(1, LOGITS // len(weight))
        log_probs = torch.empty(len(hidden))
        entropy = torch.empty(len(hidden)) if "entropy" in outputs else None
        is_top1 = torch.empty(len(hidden), dtype=torch.bool) if "is_top1" in outputs else None
        slopes = torch.empty(hidden.shape) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            target = targets[part, None]
            logits = (hidden[part].to(computed_in) @ weight.t()).float()
            if factor != 1:
                logits *= factor
            if is_top1 is not None:
                is_top1[part] = logits.argmax(-1) == target[:, 0]
            logits -= logits.logsumexp(-1, keepdim=True)
            log_probs[part] = logits.gather(-1, target)[:, 0]
            if entropy is not None:
                entropy[part] = -(logits.exp() * logits).sum(-1)
            if slopes is not None:
                ahead = logits.exp_().neg_().scatter_add_(-1, target, torch.ones(target.shape))
                slopes[part] = ahead.to(computed_in) @ weight
        if slopes is not None:
            ctx.save_for_backward(slopes.mul_(factor))
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(*(told for told in (entropy, is_top1) if told is not None))
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * grads[0].unsqueeze(-1)).to(ctx.dtype), None, None, None, None
