"""What the layers of a model keep for the backward pass, found by running the model's own code without memory.

The forward pass runs on fake tensors, which have shapes and number types and no content, at two lengths. The difference
is what each token costs, whatever the family of the model. Of layers that are alike only two run: the first, which may
keep less because nothing before it is trained, and another. Attention is replaced by a stand-in that keeps what the
kernels of GPUs keep. Models whose code asks for values, as for the largest position, can't run without content: their
linear layers tell roughly what they keep.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils.stateless import _reparametrize_module
from transformers import AttentionInterface

from finetune_trainer.model import freeze

log = logging.getLogger(__name__)

LENGTHS = (64, 128)
"""Tokens of the two runs."""
STAND_IN = "kept_by_attention"
GROUPED = "grouped_mm"
"""Implementation of experts that computes all of them at once: its shapes do not depend on the routing."""


@dataclass(frozen=True)
class SavedActivations:
    """Bytes for each token of a micro-batch."""

    layer: int
    """Kept by a layer, on average."""
    layer_input: int
    """The input of a layer: all that is kept of a layer that is recomputed."""
    outside: int
    """Kept before and after the layers."""
    widest: int
    """The largest tensor that a layer keeps."""


def of_model(
    model: Any, *, trained_width: int, frozen_width: int, autocast: bool, repeated_keys: bool
) -> SavedActivations:
    """For a model on the meta device. ``autocast``: linear layers compute in bf16, in which frozen weights are.
    ``repeated_keys``: attention with a mask repeats keys and values for each of the heads that share them."""
    widths, layers = (trained_width, frozen_width), freeze.find_layers(model)[1]
    for counts in (_alike(layers), [1] * len(layers)):  # some code asks for all layers
        try:
            with _stand_in_for_attention(model, repeated_keys), _only(layers, counts):
                short, long = (_run(model, layers, widths, length, autocast) for length in LENGTHS)
                if len(short.saved) != len(long.saved):  # the first call of some code keeps more, as of experts
                    short = _run(model, layers, widths, LENGTHS[0], autocast)
            return _of_each_token(short, long, [count for count in counts if count])
        except Exception as error:  # any code may be in a model
            log.info(
                "The layers of %s can't run without content: %s: %s", type(model).__name__, type(error).__name__, error
            )
    return _by_linear_layers(model, trained_width, 2 if autocast else frozen_width)


def _alike(layers: nn.ModuleList) -> list[int]:
    """For each layer, as how many it counts: the first of its kind as itself, the second as all others."""
    kinds: dict[Any, list[int]] = {}
    for number, layer in enumerate(layers):
        weights = tuple((name, weight.shape, weight.requires_grad) for name, weight in layer.named_parameters())
        kinds.setdefault((type(layer), weights), []).append(number)
    counts = [0] * len(layers)
    for first, *others in kinds.values():
        counts[first] = 1
        if others:
            counts[others[0]] = len(others)
    return counts


@contextmanager
def _only(layers: nn.ModuleList, counts: list[int]) -> Iterator[None]:
    """The model has only the layers that count."""
    every = list(layers)
    kept = [layer for layer, count in zip(every, counts, strict=True) if count]
    try:
        layers._modules = {str(number): layer for number, layer in enumerate(kept)}
        yield
    finally:
        layers._modules = {str(number): layer for number, layer in enumerate(every)}


def _of_each_token(short: "_Pass", long: "_Pass", counts: list[int]) -> SavedActivations:
    """``counts``: as how many each layer counts that ran."""
    pairs = zip(short.saved, long.saved, strict=True)
    grown = [(after.layer, after.size - before.size) for before, after in pairs]
    tokens = LENGTHS[1] - LENGTHS[0]
    inside = sum(size * counts[layer] for layer, size in grown if layer is not None)
    return SavedActivations(
        layer=inside // (tokens * sum(counts)),
        layer_input=(long.layer_input - short.layer_input) // tokens,
        outside=sum(size for layer, size in grown if layer is None) // tokens,
        widest=max(size for layer, size in grown if layer is not None) // tokens,
    )


class _KeptByAttention(torch.autograd.Function):
    """Keeps what flash attention keeps: queries, keys, values, outputs and a number for each query and head."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        rows, heads, length, _ = query.shape
        output = query.new_empty((rows, length, heads, value.shape[-1]))
        ctx.save_for_backward(query, key, value, output, query.new_empty((rows, heads, length), dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ARG004
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


@contextmanager
def _stand_in_for_attention(model: Any, repeated_keys: bool) -> Iterator[None]:
    def attention(
        module: nn.Module,  # noqa: ARG001
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, None]:
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (part.to(torch.bfloat16) for part in (query, key, value))
        if repeated_keys and key.shape[1] != query.shape[1]:
            shared = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        output: Any = _KeptByAttention.apply(query, key, value)
        return output, None

    AttentionInterface.register(STAND_IN, attention)
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}.values()
    before = [(config, config._attn_implementation, config._experts_implementation) for config in configs]
    try:
        for config in configs:
            config._attn_implementation, config._experts_implementation = STAND_IN, GROUPED
        yield
    finally:
        for config, implementation, experts in before:
            config._attn_implementation, config._experts_implementation = implementation, experts


class _Saved(NamedTuple):
    layer: int | None
    """The layer that keeps it."""
    size: int
    """Bytes."""


class _Pass(NamedTuple):
    saved: list[_Saved]
    layer_input: int
    """Bytes of the input of the last layer."""


def _run(model: Any, layers: nn.ModuleList, widths: tuple[int, int], length: int, autocast: bool) -> _Pass:
    """One forward pass of the backbone. What is kept counts once, however many views of it exist, and weights do not
    count. ``widths``: of a number of trained and of frozen weights, in bytes."""
    saved: list[_Saved] = []
    alive: list[torch.Tensor] = []  # the address of what was freed would be given to another
    inside: dict[str, int | None] = {"layer": None, "input": 0}

    def enter(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = inputs[0] if inputs else named["hidden_states"]
        inside.update(layer=numbers[layer], input=hidden.untyped_storage().nbytes())

    def leave(*_: Any) -> None:
        inside["layer"] = None

    numbers = {layer: number for number, layer in enumerate(layers)}
    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        tensors = _without_content(model, widths, mode)
        counted = {tensor.untyped_storage()._cdata for tensor in tensors.values()}

        def count(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in counted:
                counted.add(storage._cdata)
                alive.append(tensor)
                saved.append(_Saved(inside["layer"], storage.nbytes()))
            return tensor

        try:
            with (
                _reparametrize_module(model.train(), tensors),
                torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
                torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            ):
                base.base_model(input_ids=torch.zeros((1, length), dtype=torch.long), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
    return _Pass(saved, inside["input"] or 0)


def _without_content(model: nn.Module, widths: tuple[int, int], mode: FakeTensorMode) -> dict[str, torch.Tensor]:
    """Weights and buffers of a model on the meta device, as if they were on a CPU, in types of these widths."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in model.named_parameters():
        width = widths[0] if weight.requires_grad else widths[1]
        typed = weight.detach().to(torch.bfloat16 if width == 2 else torch.float32)
        tensors[name] = FakeTensor(mode, typed, torch.device("cpu")).requires_grad_(weight.requires_grad)
    for name, buffer in model.named_buffers():
        tensors[name] = FakeTensor(mode, buffer, torch.device("cpu"))
    return tensors


def _by_linear_layers(model: Any, trained_width: int, width: int) -> SavedActivations:
    """A linear layer keeps its input; those that share an input keep it once. Norms in fp32, attention and the gate
    keep about the outputs again."""
    layers = freeze.find_layers(model)[1]
    hidden = model.config.get_text_config().hidden_size
    linear = {
        name.removesuffix(".base_layer").rpartition(".")[2]: module
        for name, module in layers[0].named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    }
    ranks = [
        module
        for name, module in layers[0].named_modules()
        if isinstance(module, nn.Linear) and ".lora_A." in f"{name}."
    ]
    adapters = sum(width * module.in_features + 4 * module.out_features for module in ranks)
    inputs = {(module.in_features, name in ("o_proj", "dense", "out_proj")) for name, module in linear.items()}
    size = sum(into for into, _ in inputs) + sum(module.out_features for module in linear.values()) or 10 * hidden
    norms = 2 * (4 + width) * hidden
    widest = max((module.out_features for module in linear.values()), default=4 * hidden)
    return SavedActivations(
        layer=size * width + norms + adapters,
        layer_input=hidden * max(width, trained_width if not ranks else width),
        outside=2 * 4 * hidden,
        widest=widest * width,
    )
