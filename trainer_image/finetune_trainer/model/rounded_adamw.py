"""AdamW for weights and moments in bf16: it computes in fp32 and rounds at random, up or down, to the next bf16 number.

A bf16 number has eight significant bits. Plain rounding drops every update that is smaller than 1/512 of its weight,
and keeps the second moment from ever falling, because it falls by 1/1000 a step. Stochastic rounding takes the nearer
number more often, so that the mean of the rounded numbers is the exact number (Gupta et al., 2015; Zamirai et al.,
2020). It needs no memory, and rounding errors do not add up.

The random bits are a function of the job's seed and the step. So a resumed run rounds as if it had not been
interrupted, and all ranks that hold the same weights round them alike.
"""

import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor

CHUNK = 1 << 23
"""Numbers that are updated at once: it bounds the memory of fp32 copies, some 200 MiB."""
NAMES = ("adamw_torch", "adamw_torch_fused")
"""The names of AdamW in a job."""


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019) as torch computes it. Moments have the number type of their weight."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        seed: int,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        assert closure is None, "no caller has one"
        drawn = set[torch.device]()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["step"] += 1
                generator = self._generators.setdefault(weight.device, torch.Generator(weight.device))
                if weight.device not in drawn:
                    drawn.add(weight.device)
                    generator.manual_seed(random.Random(f"round:{self._seed}:{int(state['step'])}").getrandbits(63))
                tensors = [_local(part) for part in (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"])]
                if all(tensor.is_contiguous() for tensor in tensors):
                    tensors = [tensor.view(-1) for tensor in tensors]
                for parts in zip(*(torch.split(tensor, CHUNK) for tensor in tensors), strict=True):
                    _update(parts, group, int(state["step"]), generator)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a weight, with sharding."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _update(parts: tuple[torch.Tensor, ...], group: dict[str, Any], step: int, generator: torch.Generator) -> None:
    """One step of weights, with their gradients and moments, each [n]."""
    weights, gradients, first, second = parts
    (beta1, beta2), rate = group["betas"], float(group["lr"])
    exact, gradient = weights.float(), gradients.float()
    mean, square = first.float(), second.float()
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
    exact.mul_(1 - rate * group["weight_decay"])
    exact.addcdiv_(mean, denominator, value=-rate / (1 - beta1**step))
    for rounded, number in ((weights, exact), (first, mean), (second, square)):
        rounded.copy_(number if rounded.dtype == torch.float32 else stochastic_round(number, generator))


def stochastic_round(numbers: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """fp32 numbers with the precision of bf16: one of the two neighbours, the nearer with higher probability."""
    noise = torch.randint(0, 1 << 16, numbers.shape, dtype=torch.int32, device=numbers.device, generator=generator)
    # bf16 is the upper half of fp32. The noise carries into it with the probability of the lower half.
    return ((numbers.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32)
