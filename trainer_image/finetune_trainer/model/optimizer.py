"""Groups of trained weights, for the optimizer, and what it keeps of each.

Called by the engine, where it makes an optimizer or goes on with a saved one, and by `memory`. LoRA+ (Hayou et al.,
2024): B matrices learn faster than A matrices. Biases and norms don't decay, as in transformers.
"""

from collections.abc import Mapping
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


def embeddings(model: nn.Module) -> list[nn.Parameter]:
    """Of which optimizers with 8 bit keep states of 32: tokens are unevenly frequent, so gradients and states are, and
    training is unstable where a block of them shares a scale (Dettmers et al., 2022). As in transformers."""
    return [weight for module in model.modules() if isinstance(module, nn.Embedding) for weight in module.parameters()]


def keep_exact(weights: list[nn.Parameter]) -> None:
    """Before an optimizer of bitsandbytes with 8 bit takes its first step: not of these."""
    from bitsandbytes.optim.optimizer import GlobalOptimManager  # slow, and for these optimizers alone

    manager: Any = GlobalOptimManager.get_instance()  # type: ignore[no-untyped-call]
    manager.initialize()  # it knows weights by their addresses, which weights that are gone may have had
    manager.override_config(weights, "optim_bits", 32)


def load_paged(made: Any, saved: Mapping[str, Any]) -> None:
    """Go on from ``saved``, which lies on the CPU, with one of bitsandbytes' optimizers that may leave the GPU. Its own
    way of loading puts all states into plain GPU memory, where a job that fits by paging alone has no room for them."""
    made.load_state_dict(saved, move_to_device=False)
    for weight, state in made.state.items():
        for part in ("state1", "state2"):
            states = made.get_state_buffer(weight, dtype=state[part].dtype)
            states.copy_(state[part])
            state[part] = states


def state_bytes(name: str, weight: Any, width: int, *, exact: bool = False) -> int:
    """What an optimizer of that name keeps of a weight, at least, where each of its numbers takes ``width`` bytes.
    ``exact``: one of `embeddings`."""
    size = int(weight.numel())
    if name == "adafactor":  # a mean for each row and column
        return 4 * (size // weight.shape[-1] + size // weight.shape[-2] if weight.ndim > 1 else size)
    count, bytes_each = STATES[name]
    return count * size * (width if bytes_each is None else 4 if exact or size < SMALL else bytes_each)
