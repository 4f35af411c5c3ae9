"""On CPUs: the log-probabilities of the trained positions alone, with two matrix products instead of three.

TRL's fused head has a kernel for GPUs. On CPUs it scores every position, those of prompts included, and computes all
logits again in the backward pass, which for a small model is a third of a step. `TrainedPositions` adds a forward pass
to a model that reduces the backbone's output to the trained positions before it reaches the head. If the head itself
is not trained, the gradient of each log-probability is computed while its logits exist. All other heads are left to
TRL's function.
"""

import functools
import inspect
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import FusedCausalLMOutput

from finetune_trainer.data.row import IGNORED
from finetune_trainer.model import stream

MAX_LOGITS = 1 << 24
"""Logits held at once: 64 MiB."""
TRL_CHUNK_SIZE = 32768
"""Part of the vocabulary that TRL's function scores at once: its own default."""


class TrainedPositions:
    """Extends a model that has TRL's fused head; `score` is a forward pass over a micro-batch."""

    def __init__(self, model: nn.Module) -> None:
        # TRL derives the factors of the logits from the config, with a rule for each family of models, and keeps them
        # in the closure of the forward method that it installs.
        fused_head: dict[str, Any] = dict(inspect.getclosurevars(model.forward).nonlocals)
        self._temperature: float = fused_head["temperature"]
        self._logit_scale: float = fused_head["logit_scale"]
        self._softcap: float | None = fused_head["final_logit_softcapping"]
        self._extend(model)

    def score(self, model: nn.Module, batch: dict[str, Any], outputs: Sequence[str] = ("log_probs",)) -> Any:
        """TRL's `FusedCausalLMOutput` for the N trained positions of a stream, with the fields in ``outputs`` [1, N].
        ``model`` may be wrapped. A position predicts the token after it; the first token of a document has no label.
        """
        return model(**stream.forward_inputs(batch), trained_labels=batch["labels"], outputs=tuple(outputs))

    def _extend(self, model: nn.Module) -> None:
        """Let ``model(..., trained_labels=..., outputs=...)`` score. All other calls go to the present forward method.

        The method belongs to this model alone, because it must be reached through every wrapper (DDP, FSDP, peft). It
        takes the model as an argument, so it is right for deep copies of the model, too.
        """
        method: Any = model.forward
        present = method.__func__

        @functools.wraps(type(model).forward)  # `generate` checks its arguments against this signature
        def forward(module: Any, *args: Any, trained_labels: Any = None, outputs: Any = (), **kwargs: Any) -> Any:
            if trained_labels is None:
                return present(module, *args, **kwargs)
            kwargs.pop("labels", None)  # peft passes it on
            config = module.config.get_text_config()
            if routed := getattr(config, "output_router_logits", False):
                kwargs["output_router_logits"] = True
            backbone = module.base_model(*args, **kwargs)
            router_loss = _router_loss(backbone, config) if routed else None
            return self._score(module, trained_labels[:, 1:], outputs, backbone, router_loss)

        model.forward = MethodType(forward, model)

    def _score(
        self,
        model: Any,
        labels: torch.Tensor,
        outputs: tuple[str, ...],
        backbone: Any,
        router_loss: torch.Tensor | None,
    ) -> Any:
        trained = labels != IGNORED
        hidden = backbone.last_hidden_state[:, :-1][trained]
        backbone.last_hidden_state = hidden.unsqueeze(0)  # for a value head, which computes from the same positions
        lm_head = model.get_output_embeddings()
        weight, bias = lm_head.weight, lm_head.bias
        if isinstance(weight, DTensor):
            weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
        log_probs, entropy, is_top1 = self._log_probs(hidden, weight, bias, labels[trained], outputs)

        def row(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values.unsqueeze(0)

        return FusedCausalLMOutput(
            log_probs=row(log_probs), entropy=row(entropy), is_top1=row(is_top1), aux_loss=router_loss
        )

    def _log_probs(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        outputs: tuple[str, ...],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """(log-probabilities, entropies, is_top1) of the targets, each [N]."""
        scale, temperature, softcap = self._logit_scale, self._temperature, self._softcap
        head_is_trained = torch.is_grad_enabled() and weight.requires_grad
        if head_is_trained or bias is not None or softcap is not None:
            chunked: Any = ChunkedLogProbFunction
            log_probs, entropy, _, _, is_top1 = chunked.apply(
                hidden, weight, bias, targets, temperature, TRL_CHUNK_SIZE, softcap, scale, outputs
            )
            return log_probs, entropy, is_top1
        return _LogProbs.apply(hidden, weight, targets, scale / temperature, outputs)  # type: ignore[no-any-return]


def _router_loss(backbone: Any, config: Any) -> torch.Tensor:
    """The loss that balances the experts of a mixture, as TRL's fused head computes it for all families: every token of
    a stream counts."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    loss = load_balancing_loss_func(backbone.router_logits, config.num_experts, config.num_experts_per_tok)
    assert isinstance(loss, torch.Tensor), "the backbone returned router logits"
    return loss


class _LogProbs(torch.autograd.Function):
    """hidden [N, H], weight [V, H], targets [N], factor of the logits -> log-probabilities of the targets, and, if
    requested, entropies and whether the targets are the most likely tokens, each [N].

    With z = factor * hidden @ weight.T and p = softmax(z), the gradient of log p_y is factor * (onehot_y - p) @ weight.
    It does not depend on the loss, so it is computed in the forward pass. Memory: [N, H], and `MAX_LOGITS` logits.
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
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        weight, rows = weight.to(dtype), max(1, MAX_LOGITS // len(weight))
        log_probs = torch.empty(len(hidden))
        entropy = torch.empty(len(hidden)) if "entropy" in outputs else None
        is_top1 = torch.empty(len(hidden), dtype=torch.bool) if "is_top1" in outputs else None
        gradients = torch.empty(hidden.shape) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            target = targets[part, None]
            logits = (hidden[part].to(dtype) @ weight.t()).float()
            if factor != 1:
                logits *= factor
            if is_top1 is not None:
                is_top1[part] = logits.argmax(-1) == target[:, 0]
            logits -= logits.logsumexp(-1, keepdim=True)
            log_probs[part] = logits.gather(-1, target)[:, 0]
            if entropy is not None:
                entropy[part] = -(logits.exp() * logits).sum(-1)
            if gradients is not None:
                onehot_minus_p = logits.exp_().neg_().scatter_add_(-1, target, torch.ones(target.shape))
                gradients[part] = onehot_minus_p.to(dtype) @ weight
        if gradients is not None:
            ctx.save_for_backward(gradients.mul_(factor))
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(*(output for output in (entropy, is_top1) if output is not None))
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return (gradients * grads[0].unsqueeze(-1)).to(ctx.dtype), None, None, None, None
