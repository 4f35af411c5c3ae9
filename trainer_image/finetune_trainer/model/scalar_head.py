"""A scalar head: a linear layer with one output for each position. Rewards and values of states come from it.

Used by `reward_head` and `value_head`. Losses compare differences of these numbers, for which the three digits of bf16
are too few. So it computes in fp32, whatever the model around it does. With sharding in bf16, though, its weights are
gathered in bf16 as all others are.
"""

import torch
from torch import nn
from torch.nn import functional


class ScalarHead(nn.Linear):
    """Replaces an nn.Linear. Its weights have the same names."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., 1] in fp32, also under autocast."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return functional.linear(input.float(), self.weight.float(), bias)

    @classmethod
    def from_linear(cls, layer: nn.Linear) -> "ScalarHead":
        """A head with the layer's own weights, not copies of them."""
        head = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        head.weight, head.bias = layer.weight, layer.bias
        return head
