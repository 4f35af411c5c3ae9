"""Parameter groups for the optimizer, and the state that an optimizer keeps for each weight.

Called by the trainer when it creates an optimizer or loads its saved state, and by the memory estimate. LoRA+ (Hayou et
al., 2024): B matrices have a higher learning rate than A matrices. Biases and norms have no weight decay, as in
transformers.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

NO_DECAY = ("bias", "norm")
LORA_B = (".lora_B.", ".lora_embedding_B.")


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, lora_plus_ratio: float | None = None
) -> list[dict[str, Any]]:
    """Parameter groups as torch expects them: every trained weight is in exactly one. The first group has the plain
    learning rate, which is logged."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            rate = learning_rate * (lora_plus_ratio or 1.0) if any(part in name for part in LORA_B) else learning_rate
            decay = 0.0 if weight.ndim < 2 or any(part in name.lower() for part in NO_DECAY) else weight_decay
            groups.setdefault((rate, decay), []).append(weight)
    ordered = sorted(groups.items(), key=lambda group: group[0][0] != learning_rate)
    return [{"params": weights, "lr": rate, "weight_decay": decay} for (rate, decay), weights in ordered]


SMALL = 4096
"""bitsandbytes keeps the state of weights with fewer numbers in 32 bit."""
STATES = {
    "adamw_torch_fused": (2, None),
    "adamw_torch": (2, None),
    "adamw_8bit": (2, 1),
    "paged_adamw_32bit": (0, None),
    "paged_adamw_8bit": (0, None),
    "lion_32bit": (1, 4),
    "lion_8bit": (1, 1),
    "sgd": (0, None),
    "rmsprop": (1, None),
    "adagrad": (1, None),
}
"""Optimizer -> (state numbers on the GPU for each trained weight, bytes of each; None: as many as the weight's own).
Paged states leave the GPU when it needs the memory, so they count as 0."""


def embedding_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights whose 8 bit optimizers keep 32 bit states, as in transformers. Tokens have very different
    frequencies, so gradients and states do, and training is unstable when a block of them shares a scale (Dettmers et
    al., 2022)."""
    return [weight for module in model.modules() if isinstance(module, nn.Embedding) for weight in module.parameters()]


def use_32_bit_states(weights: list[nn.Parameter]) -> None:
    """Exempt the weights from 8 bit states. Call it before the first step of an 8 bit optimizer of bitsandbytes."""
    from bitsandbytes.optim.optimizer import GlobalOptimManager  # slow, and needed for these optimizers only

    manager: Any = GlobalOptimManager.get_instance()  # type: ignore[no-untyped-call]
    manager.initialize()  # it identifies weights by address, and a freed weight may have had the same address
    manager.override_config(weights, "optim_bits", 32)


def load_paged_state(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Load ``saved``, which is on the CPU, into a paged optimizer of bitsandbytes. Its own way of loading puts all
    states into plain GPU memory, where they have no room in a job that only fits with paging."""
    optimizer.load_state_dict(saved, move_to_device=False)
    for weight, state in optimizer.state.items():
        for part in ("state1", "state2"):
            states = optimizer.get_state_buffer(weight, dtype=state[part].dtype)
            states.copy_(state[part])
            state[part] = states


def state_bytes(name: str, weight: Any, width: int, *, exact: bool = False) -> int:
    """The least number of bytes that optimizer ``name`` keeps for a weight whose numbers take ``width`` bytes each.
    ``exact``: the weight is one of `embedding_weights`."""
    size = int(weight.numel())
    if name == "adafactor":  # a mean for each row and column
        return 4 * (size // weight.shape[-1] + size // weight.shape[-2] if weight.ndim > 1 else size)
    count, bytes_each = STATES[name]
    return count * size * (width if bytes_each is None else 4 if exact or size < SMALL else bytes_each)
