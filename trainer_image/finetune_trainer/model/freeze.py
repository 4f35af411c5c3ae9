"""Method freeze: some layers are trained in full, the others stay frozen.

Called by `trainable`, also for the memory estimate with a model without weights. Names are checked against the model's
modules, because a name that matches nothing would silently train less than the job asks for.
"""

from finetune_api.tuning import FreezeSpec
from torch import nn
from transformers import PreTrainedModel

from finetune_trainer.errors import InvalidSpec


def apply(model: PreTrainedModel, spec: FreezeSpec) -> None:
    """Mark the layers and modules that the job names as trainable, and nothing else."""
    name, layers = find_layers(model)
    if abs(spec.layers) > len(layers):
        raise InvalidSpec(
            f"tuning.freeze.layers: {spec.layers} given, but this model has {len(layers)} layers. Use -{len(layers)} to"
            f" {len(layers)}, or method full"
        )
    chosen = layers[-spec.layers :] if spec.layers > 0 else layers[: -spec.layers]
    parts = {part for layer in layers for part, _ in layer.named_children()}
    _refuse_unknown("tuning.freeze.modules", spec.modules or [], parts)

    model.requires_grad_(False)
    for layer in chosen:
        for part, module in layer.named_children():
            if spec.modules is None or part in spec.modules:
                module.requires_grad_(True)
        if spec.modules is None:
            layer.requires_grad_(True)

    outside = {
        path: module
        for path, module in model.named_modules()
        if path and not path.startswith(f"{name}.") and path != name and any(True for _ in module.parameters())
    }
    names = {path.rpartition(".")[2] for path, module in outside.items() if not _contains(module, layers)}
    _refuse_unknown("tuning.freeze.extraModules", spec.extra_modules or [], names)
    for path, module in outside.items():
        if path.rpartition(".")[2] in (spec.extra_modules or ()) and not _contains(module, layers):
            module.requires_grad_(True)


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The stack of transformer layers: the longest list of modules."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise InvalidSpec("tuning.method: this model has no stack of layers, so none can be frozen. Use lora or full")
    return max(lists, key=lambda entry: len(entry[1]))


def _contains(module: nn.Module, layers: nn.ModuleList) -> bool:
    return any(inner is layers for inner in module.modules())


def _refuse_unknown(field: str, given: list[str], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise InvalidSpec(f"{field}: this model has no {', '.join(unknown)} there. It has: {', '.join(sorted(known))}")
