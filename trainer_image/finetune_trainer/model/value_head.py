"""PPO's critic: a linear layer on the policy's last hidden states, which says what an answer so far is worth.

Added by stage ppo between `build` and its trainer. It starts at zero: a fresh critic expects nothing, rather than
anything. Its values come out of the same forward pass as the log-probabilities, so ranks that share gradients or
weights see one pass, and only at the positions that the head scores. It is saved in checkpoints, never in an artifact.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import _set_trainable  # what peft itself makes modules_to_save with
from torch import nn

from finetune_trainer.model.scalar import Scalar

NAME, VALUES = "value_head", "state_values"


def add(model: Any) -> None:
    """Give the model the layer. From then on ``model(..., fused_lm_head=True)`` has ``state_values`` beside its
    ``log_probs``, in the same shape."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    weight = next(parameter for parameter in base.parameters() if parameter.is_floating_point())
    head = Scalar(base.config.get_text_config().hidden_size, 1, device=weight.device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    base.add_module(NAME, head)
    if isinstance(model, PeftModel):
        config = model.peft_config[model.active_adapter]
        config.modules_to_save = sorted({*(config.modules_to_save or ()), NAME})  # type: ignore[attr-defined]
        _set_trainable(base, model.active_adapter, [NAME], inference_mode=False)
    _Values(base)


def remove(model: Any) -> None:
    """Take it away from a model that is about to be saved as what it was before."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not hasattr(base, NAME):
        return
    delattr(base, NAME)
    for config in getattr(model, "peft_config", {}).values():
        config.modules_to_save = [name for name in config.modules_to_save or () if name != NAME] or None


class _Values:
    """Two hooks: one keeps what the backbone says, one lets the layer see of it what the head has scored."""

    def __init__(self, base: nn.Module) -> None:
        self._said: Any = None
        backbone = base.base_model
        assert isinstance(backbone, nn.Module)
        backbone.register_forward_hook(self._keep)
        base.register_forward_hook(self._add)

    def _keep(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._said = output  # not its states: `head.TrainedPositions` may still reduce them

    def _add(self, model: nn.Module, _args: Any, output: Any) -> Any:
        said, self._said = self._said, None
        head: Any = getattr(model, NAME, None)
        scored = getattr(output, "log_probs", None)
        if scored is not None and head is not None:
            # In the output, where DDP looks for what the loss is made of. The last position predicts nothing.
            output[VALUES] = head(said.last_hidden_state[:, : scored.shape[1]]).squeeze(-1)
        return output
