"""PPO's critic: a scalar head on the policy's last hidden states, which predicts the return from each position.

Stage ppo adds it to the built model, before its trainer. It starts at zero: a fresh critic predicts 0 everywhere. Its
values come from the same forward pass as the log-probabilities, at the same positions, so ranks that share gradients or
weights see one forward pass. It is saved in checkpoints, never in an artifact.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import _set_trainable  # peft's own function for modules_to_save
from torch import nn

from finetune_trainer.model.scalar_head import ScalarHead

NAME, VALUES = "value_head", "state_values"


def add(model: Any) -> None:
    """Add the critic. From then on ``model(..., fused_lm_head=True)`` and `TrainedPositions.score` return
    ``state_values`` beside ``log_probs``, in the same shape."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    weight = next(parameter for parameter in base.parameters() if parameter.is_floating_point())
    head = ScalarHead(base.config.get_text_config().hidden_size, 1, device=weight.device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    base.add_module(NAME, head)
    if isinstance(model, PeftModel):
        config = model.peft_config[model.active_adapter]
        config.modules_to_save = sorted({*(config.modules_to_save or ()), NAME})  # type: ignore[attr-defined]
        _set_trainable(base, model.active_adapter, [NAME], inference_mode=False)
    _ValueHooks(base)


def remove(model: Any) -> None:
    """Remove the critic from a model that is about to be saved as an artifact."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not hasattr(base, NAME):
        return
    delattr(base, NAME)
    for config in getattr(model, "peft_config", {}).values():
        config.modules_to_save = [name for name in config.modules_to_save or () if name != NAME] or None


class _ValueHooks:
    """Two hooks on a model: the first remembers the backbone's output, the second adds the values to the model's
    output."""

    def __init__(self, base: nn.Module) -> None:
        self._backbone_output: Any = None
        backbone = base.base_model
        assert isinstance(backbone, nn.Module)
        backbone.register_forward_hook(self._remember)
        base.register_forward_hook(self._add_values)

    def _remember(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._backbone_output = output  # not its states: `lm_head.TrainedPositions` reduces them later

    def _add_values(self, model: nn.Module, _args: Any, output: Any) -> Any:
        backbone_output, self._backbone_output = self._backbone_output, None
        head: Any = getattr(model, NAME, None)
        log_probs = getattr(output, "log_probs", None)
        if log_probs is not None and head is not None:
            # In the output, where DDP looks for the inputs of the loss. The last position predicts nothing.
            states = backbone_output.last_hidden_state[:, : log_probs.shape[1]]
            output[VALUES] = head(states).squeeze(-1)
        return output
