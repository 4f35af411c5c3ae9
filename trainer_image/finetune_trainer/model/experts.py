"""Mixtures of experts under adapters: which layers route, and what share of the weights an adapter changes.

A router is never adapted by ``all-linear``: a small change of its scores sends tokens to other experts, and training
balances them only in models that have a loss for it.
"""

from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import transformers_weight_conversion
from torch import nn

EXPERTS = "experts"
"""transformers' name of the experts of a layer, in one module or a list."""


@dataclass(frozen=True)
class AdaptedWeights:
    """What an adapter changes."""

    share: float
    """Share of the model's weights, from 0 to 1."""
    experts: float | None
    """Share of the weights of the experts. None: the model has no experts."""


def routers(model: nn.Module) -> set[str]:
    """The last parts of the names of layers beside experts that give each of them a number, or gate a shared expert."""
    names: set[str] = set()
    for module in model.modules():
        experts = dict(module.named_children()).get(EXPERTS)
        if experts is None:
            continue
        first = next(experts.parameters(), None)
        if first is None:
            continue
        count = len(experts) if isinstance(experts, nn.ModuleList) else first.shape[0]
        for name, layer in module.named_children():
            weight = getattr(layer, "weight", None)
            if name == EXPERTS or weight is None or weight.ndim != 2:
                continue
            if getattr(layer, "out_features", weight.shape[0]) in (1, count):  # a quantized weight has another shape
                names.add(name)
    return names


def linear_without_routers(model: Any, heads: tuple[Any, ...]) -> list[str] | None:
    """``all-linear`` as names, for families whose experts peft finds by the names that they had when they were linear
    layers: peft would adapt the router with them. None for other families."""
    conversion: Any = transformers_weight_conversion
    family = conversion._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type)
    former = conversion._MOE_TARGET_MODULE_MAPPING.get(family)
    skipped = routers(model)
    if not former or not skipped:
        return None
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in heads
    }
    return sorted((linear | set(former)) - skipped)


def adapted_weights(tuned: Any) -> AdaptedWeights:
    """What the adapter of a model changes. The model may be on the meta device."""
    changed: dict[int, int] = {}
    for module in tuned.modules():
        if isinstance(module, BaseTunerLayer):
            base: Any = module.get_base_layer()
            weight = getattr(base, getattr(module, "parameter_name", None) or "weight")
            changed[id(weight)] = weight.numel()
    own = [(name, weight) for name, weight in tuned.named_parameters() if "lora_" not in name]
    of_experts = [weight for name, weight in own if f".{EXPERTS}." in name]
    total = sum(weight.numel() for weight in of_experts)
    return AdaptedWeights(
        share=sum(changed.values()) / sum(weight.numel() for _, weight in own),
        experts=sum(changed.get(id(weight), 0) for weight in of_experts) / total if total else None,
    )
