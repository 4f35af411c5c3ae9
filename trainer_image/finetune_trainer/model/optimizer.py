"""Groups of trained weights, for the optimizer.

Called by the engine's ``create_optimizer``. LoRA+ (Hayou et al., 2024): B matrices learn faster than A matrices. Biases
and norms don't decay, as in transformers.
"""

from typing import Any

from torch import nn

NO_DECAY = ("bias", "norm")
FASTER = (".lora_B.", ".lora_embedding_B.")


def groups(
    model: nn.Module, learning_rate: float, weight_decay: float, lora_plus_ratio: float | None = None
) -> list[dict[str, Any]]:
    """Parameter groups as torch takes them: every trained weight is in exactly one. The first has the plain rate, which
    is the one that is logged."""
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            rate = learning_rate * (lora_plus_ratio or 1.0) if any(part in name for part in FASTER) else learning_rate
            decay = 0.0 if weight.ndim < 2 or any(part in name.lower() for part in NO_DECAY) else weight_decay
            found.setdefault((rate, decay), []).append(weight)
    ordered = sorted(found.items(), key=lambda group: group[0][0] != learning_rate)
    return [{"params": weights, "lr": rate, "weight_decay": decay} for (rate, decay), weights in ordered]


SMALL = 4096
"""bitsandbytes keeps the state of smaller weights in 32 bit."""
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
"""Numbers that are kept for each trained weight on the GPU, and the bytes of each; None: those of the weight itself.
Paged ones leave the GPU when it needs the room."""


def state_bytes(name: str, weight: Any, width: int) -> int:
    """What an optimizer of that name keeps of a weight, at least, where each of its numbers takes ``width`` bytes."""
    size = int(weight.numel())
    if name == "adafactor":  # a mean for each row and column
        return 4 * (size // weight.shape[-1] + size // weight.shape[-2] if weight.ndim > 1 else size)
    count, bytes_each = STATES[name]
    return count * size * (width if bytes_each is None else 4 if size < SMALL else bytes_each)
