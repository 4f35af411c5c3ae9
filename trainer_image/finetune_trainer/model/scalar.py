"""A linear layer that says one number for each position: rewards, and the values of states.

Made by `reward` and `value_head`. What is trained are differences of such numbers, and the three digits of bf16 are too
few for them: it computes in fp32, whatever the model around it does. Sharding with bf16 gathers its weights in bf16,
though, as it does all weights.
"""

import torch
from torch import nn
from torch.nn import functional


class Scalar(nn.Linear):
    """In place of nn.Linear, with weights of the same names."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Also where autocast would have it in bf16."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return functional.linear(input.float(), self.weight.float(), bias)

    @classmethod
    def of(cls, layer: nn.Linear) -> "Scalar":
        """The same weights."""
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made
