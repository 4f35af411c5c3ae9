"""Method freeze: some layers are trained whole, the others stay as they are.

Called by `build` and `memory`, which gives it a model without weights. Names are checked against what the model has,
as one that matches nothing would train less than was asked for, silently.
"""

from finetune_api.tuning import FreezeSpec
from torch import nn
from transformers import PreTrainedModel

from finetune_trainer.errors import InvalidSpec


def mark(model: PreTrainedModel, spec: FreezeSpec) -> None:
    """Let only the layers and modules that the job names be trained."""
    name, layers = find_layers(model)
    if abs(spec.layers) > len(layers):
        raise InvalidSpec(
            f"tuning.freeze.layers: {spec.layers} given, but this model has {len(layers)} layers: use -{len(layers)} to"
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
        raise InvalidSpec("tuning.method: this model has no stack of layers to freeze a part of: use lora or full")
    return max(lists, key=lambda entry: len(entry[1]))


def _contains(module: nn.Module, layers: nn.ModuleList) -> bool:
    return any(inner is layers for inner in module.modules())


def _refuse_unknown(field: str, given: list[str], known: set[str]) -> None:
    wrong = sorted(set(given) - known)
    if wrong:
        raise InvalidSpec(f"{field}: this model has no {', '.join(wrong)} there; it has: {', '.join(sorted(known))}")
