"""Weights as files, before anybody loads them: is each file whole, and is what they hold what the model is made of?

Called by ``prepare``, so that a copy that broke off is found before a GPU is held. Only the heads of safetensors are
read: kilobytes, whatever the model's size.
"""

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.model.folder import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from finetune_trainer.model.base import Kind

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
LENGTH = 8
"""Bytes at the start of a safetensors file: how long its head is."""
LORA = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
SHOWN = 3

Shapes = dict[str, list[int]]

log = logging.getLogger(__name__)


def head(file: Path, what: str) -> Shapes:
    """Name -> shape of what a file holds. Raises InvalidSpec for one that isn't whole."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH), "little")
        text = stream.read(length) if length <= size else b""
    try:
        content = json.loads(text)
        content.pop("__metadata__", None)
        shapes = {str(name): list(facts["shape"]) for name, facts in content.items()}
        end = LENGTH + length + max((int(facts["data_offsets"][1]) for facts in content.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise InvalidSpec(f"{what}/{file.name} is no safetensors file, or only a part of one: copy it again") from None
    if size != end:
        raise InvalidSpec(f"{what}/{file.name} has {size} bytes, and its head tells of {end}: copy it again")
    return shapes


def of_model(folder: Path, source: str, field: str = "model.source") -> Shapes:
    """Of all the files that are loaded. Raises NotFound for one that is missing, InvalidSpec."""
    what = f"{field}: {source}"
    # config.json may name another file.
    named = json.loads((folder / "config.json").read_bytes()).get("transformers_weights")
    one, index = (named or ONE, named if str(named).endswith(".index.json") else INDEX)
    if one != index and (folder / one).is_file():
        return head(folder / one, what)
    if not (folder / index).is_file():
        there = ", ".join(sorted(file.name for file in folder.glob("*.safetensors"))[:SHOWN])
        raise NotFound(f"{what} has neither {one} nor {index}, which tells what is where in {there}")
    try:
        placed = dict(json.loads((folder / index).read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise InvalidSpec(f"{what}/{index} has no weight_map: copy it again") from None
    shards = sorted(set(placed.values()))
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise NotFound(
            f"{what}: {len(missing)} of the {len(shards)} files that {index} names are missing: {_some(missing)}"
        )
    heads = {name: head(folder / name, what) for name in shards}
    if lost := [weight for weight, shard in placed.items() if weight not in heads[shard]]:
        raise InvalidSpec(f"{what}: {placed[lost[0]]} doesn't hold {_some(lost)}, as {index} says: copy both again")
    return {name: shape for shapes in heads.values() for name, shape in shapes.items()}


def check_model(
    config: Any, shapes: Shapes, source: str, *, kind: "Kind" = "causal", field: str = "model.source"
) -> None:
    """All that the model is made of is there, in its shapes: transformers itself says so, of weights without content.
    Of a reward model the head may still be missing. Raises InvalidSpec."""
    import torch

    from finetune_trainer.model import base, score

    known: Any = base.AUTO[kind]._model_mapping
    if type(config) not in known:
        return  # the model's own code: found out when they are loaded
    empty = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}
    loading: Any = known[type(config)]
    try:
        _, loaded = loading.from_pretrained(
            None,
            config=config,
            state_dict=empty,
            device_map="meta",
            dtype=torch.bfloat16,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        missing, other = (
            sorted(set(loaded["missing_keys"]) - score.may_be_missing(kind)),
            sorted(map(tuple, loaded["mismatched_keys"])),
        )
    except Exception as error:  # a way of loading that can't do without content
        log.warning("The weights of %s can't be compared with its config: %s", source, error)
        return
    if missing:
        raise InvalidSpec(
            f"{field}: {len(missing)} weights are missing in the safetensors of {source}, as {_some(missing)}:"
            " the copy is not complete, or config.json is another model's"
        )
    if other:
        name, found, expected = other[0]
        raise InvalidSpec(
            f"{field}: {name} of {source} has the shape {tuple(found)}, and by config.json it has"
            f" {tuple(expected)}: they are of different models"
        )


def of_adapter(folder: Path, source: str, field: str = "tuning.adapter.source") -> Shapes:
    """Of an adapter's file."""
    return head(folder / ADAPTER_WEIGHTS, f"{field}: {source}")


def lora(shapes: Shapes) -> dict[str, tuple[int, int, int]]:
    """Adapted layer -> (its inputs, the adapter's rank, its outputs), for the layers that have both halves."""
    halves = {
        (found["layer"], found["part"]): shape for name, shape in shapes.items() if (found := LORA.fullmatch(name))
    }
    return {
        layer: (first[-1], first[0], second[0])
        for (layer, part), first in halves.items()
        if part == "A" and (second := halves.get((layer, "B")))
    }


def check_adapter(model: Any, shapes: Shapes, source: str) -> None:
    """An adapter's layers are layers of this model, which needs no content. Raises InvalidSpec."""
    from torch import nn

    layers = dict(model.named_modules())
    adapted = lora(shapes)
    if not adapted:
        raise InvalidSpec(f"tuning.adapter.source: {source}/{ADAPTER_WEIGHTS} holds no LoRA weights")
    # Experts may lie in files one by one, and in the model all in one.
    if unknown := sorted(name for name in adapted if name not in layers and ".experts." not in name):
        raise InvalidSpec(
            f"tuning.adapter.source: {source} was made for another model: this one has no {_some(unknown)}"
        )
    for name, (inputs, _, outputs) in adapted.items():
        layer = layers.get(name)
        if isinstance(layer, nn.Linear) and (layer.in_features, layer.out_features) != (inputs, outputs):
            raise InvalidSpec(
                f"tuning.adapter.source: {source} was made for another model: its {name} goes from {inputs} to"
                f" {outputs} numbers, and this model's from {layer.in_features} to {layer.out_features}"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
