"""The shapes of weights in safetensors files, before anything is loaded: is each file complete, and do the files hold
the weights that the model consists of?

Called by preparation, so a broken copy is found before a GPU is held. Only the headers of the files are read:
kilobytes, whatever the size of the model.
"""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.model.model_files import ADAPTER_WEIGHTS, VALUE_HEAD
from finetune_trainer.workspace.files import parse_object

if TYPE_CHECKING:
    from finetune_trainer.model.base import Kind

SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
LENGTH = 8
"""Bytes at the start of a safetensors file with the length of its header."""
LONGEST_HEADER = 100_000_000
"""Bytes. The library that loads the weights reads no longer header."""
LORA = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
SHOWN = 3

Shapes = dict[str, list[int]]
"""Name of a weight -> its shape."""

log = logging.getLogger(__name__)


def read_header(file: Path, what: str) -> Shapes:
    """The weights in a file. Raises InvalidSpec for an incomplete file; ``what`` begins the message."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH), "little")
        text = stream.read(length) if length <= min(size, LONGEST_HEADER) else b""
    try:
        content = parse_object(text)
        content.pop("__metadata__", None)
        shapes = {name: [int(length) for length in entry["shape"]] for name, entry in content.items()}
        end = LENGTH + length + max((int(entry["data_offsets"][1]) for entry in content.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        raise InvalidSpec(f"{what}/{file.name} is not a complete safetensors file: copy it again") from None
    if size != end:
        raise InvalidSpec(f"{what}/{file.name} has {size} bytes, but its header describes {end}: copy it again")
    return shapes


def of_model(folder: Path, source: str, field: str = "model.source") -> Shapes:
    """The weights in all files of a model. Raises NotFound for a missing file, InvalidSpec."""
    what = f"{field}: {source}"
    # config.json may name another file.
    named = parse_object((folder / "config.json").read_bytes()).get("transformers_weights")
    if not (named is None or _is_name(named)):
        raise InvalidSpec(f"{what}: transformers_weights in config.json is {named!r}, and must be the name of a file")
    single = str(named or SINGLE_FILE)
    index = single if single.endswith(".index.json") else INDEX
    if single != index and (folder / single).is_file():
        return read_header(folder / single, what)
    if not (folder / index).is_file():
        present = ", ".join(sorted(file.name for file in folder.glob("*.safetensors"))[:SHOWN])
        raise NotFound(f"{what} has neither {single} nor {index}, which is the index of {present}. Copy it there")
    try:
        weight_map = dict(parse_object((folder / index).read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise InvalidSpec(f"{what}/{index} has no weight_map: copy it again") from None
    if strange := [shard for shard in weight_map.values() if not _is_name(shard)]:
        raise InvalidSpec(f"{what}/{index} names {strange[0]!r}, which is no file of the model's folder")
    shards = sorted(set(weight_map.values()))
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise NotFound(
            f"{what}: {len(missing)} of the {len(shards)} files in {index} are missing: {_shorten(missing)}."
            " Copy them again"
        )
    headers = {name: read_header(folder / name, what) for name in shards}
    if lost := [weight for weight, shard in weight_map.items() if weight not in headers[shard]]:
        raise InvalidSpec(
            f"{what}: {weight_map[lost[0]]} does not hold {_shorten(lost)}, although {index} says so: copy both again"
        )
    return {name: shape for shapes in headers.values() for name, shape in shapes.items()}


def _is_name(value: object) -> bool:
    """Whether it is the name of a file directly in a folder."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & {"/", "\\", "\0"}


COUNTS = re.compile(r"(num|n)(_\w+)?_(layers?|blocks?|experts?|labels?|heads?|codebooks)")
"""Settings of config.json that say how many parts of a kind the model has."""


def check_counts(folder: Path, shapes: Shapes, source: str, field: str = "model.source") -> None:
    """config.json describes no more parts than the files can have: each layer has weights of its own, and experts and
    heads are at most as many as the rows of a weight. A model is built by its config before it is compared with the
    files, and a wrong number could fill the memory. Raises InvalidSpec."""
    most = max([len(shapes), 1024, *(length for shape in shapes.values() for length in shape)])
    sections = [parse_object((folder / "config.json").read_bytes())]
    while sections:
        section = sections.pop()
        sections += [value for value in section.values() if isinstance(value, dict)]
        for name, value in section.items():
            if COUNTS.fullmatch(name) and isinstance(value, int) and value > most:
                raise InvalidSpec(
                    f"{field}: config.json of {source} has {name} {value}, and its files have only {len(shapes)}"
                    " weights. They belong to different models: copy both again"
                )


def check_model(
    config: Any, shapes: Shapes, source: str, *, kind: "Kind" = "causal", field: str = "model.source"
) -> None:
    """All weights of the model exist in their shapes, according to transformers, which loads them on the meta device.
    The head of a reward model may be missing. Raises InvalidSpec."""
    import torch

    from finetune_trainer.model import base, reward_head

    known: Any = base.AUTO[kind]._model_mapping
    if type(config) not in known:
        return  # the model's own code: loading itself shows it
    empty = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}
    model_class: Any = known[type(config)]
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=empty,
            device_map="meta",
            dtype=torch.bfloat16,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        missing = sorted(set(info["missing_keys"]) - reward_head.optional_weights(kind))
        mismatched = sorted(map(tuple, info["mismatched_keys"]))
    except Exception as error:  # a model class that does not load on the meta device
        log.warning("The weights of %s can't be compared with its config: %s", source, error)
        return
    if kind == "reward":
        reward_head.install(model)  # raises for a head of another kind, which would seem to be missing
    if missing:
        raise InvalidSpec(
            f"{field}: {len(missing)} weights are missing in the safetensors of {source}, as {_shorten(missing)}. The"
            " copy is not complete, or config.json belongs to another model: copy it again"
        )
    if mismatched:
        name, actual, expected = mismatched[0]
        raise InvalidSpec(
            f"{field}: {name} of {source} has the shape {tuple(actual)}, and by config.json it has"
            f" {tuple(expected)}. They belong to different models: copy both again"
        )


def of_adapter(folder: Path, source: str, field: str = "tuning.adapter.source") -> Shapes:
    """The weights in an adapter's file. Raises InvalidSpec."""
    return read_header(folder / ADAPTER_WEIGHTS, f"{field}: {source}")


def check_value_head(config: Any, folder: Path, source: str, field: str) -> None:
    """The head in a file of its own fits the model. Raises InvalidSpec."""
    what = f"{field}: {source}"
    shape, hidden = (
        read_header(folder / VALUE_HEAD, what).get("v_head.summary.weight"),
        config.get_text_config().hidden_size,
    )
    if shape != [1, hidden]:
        found = f"the shape {tuple(shape)}" if shape else "no v_head.summary.weight"
        raise InvalidSpec(
            f"{what}/{VALUE_HEAD} has {found}, and a reward head of this model has (1, {hidden}). Name the output of"
            " stage rm, with its own base model"
        )


def fit_model(adapter: Shapes, model: Shapes) -> bool:
    """Whether the adapter's layers are among the model's weights, with the same shapes. Layers whose weights have other
    names in files than in the model are not compared."""
    layers = lora_layers(adapter)
    pairs = [
        (model[f"{name}.weight"], [out, into]) for name, (into, _, out) in layers.items() if f"{name}.weight" in model
    ]
    return bool(pairs) and all(theirs == ours for theirs, ours in pairs)


def lora_layers(shapes: Shapes) -> dict[str, tuple[int, int, int]]:
    """Adapted layer -> (inputs, rank of the adapter, outputs), for the layers that have both matrices."""
    matrices = {
        (match["layer"], match["part"]): shape for name, shape in shapes.items() if (match := LORA.fullmatch(name))
    }
    return {
        layer: (a[-1], a[0], b[0])
        for (layer, part), a in matrices.items()
        if part == "A" and (b := matrices.get((layer, "B")))
    }


def check_adapter(model: Any, shapes: Shapes, source: str) -> None:
    """The adapter's layers are layers of this model, which may be on the meta device. Raises InvalidSpec."""
    from torch import nn

    layers = dict(model.named_modules())
    adapted = lora_layers(shapes)
    if not adapted:
        raise InvalidSpec(
            f"tuning.adapter.source: {source}/{ADAPTER_WEIGHTS} holds no LoRA weights. Name a LoRA adapter"
        )
    # Files may list experts separately, where the model has one module for all of them.
    if unknown := sorted(name for name in adapted if name not in layers and ".experts." not in name):
        raise InvalidSpec(
            f"tuning.adapter.source: {source} was made for another model: the job's model has no {_shorten(unknown)}."
            " Name an adapter of the job's model"
        )
    for name, (inputs, _, outputs) in adapted.items():
        layer = layers.get(name)
        if isinstance(layer, nn.Linear) and (layer.in_features, layer.out_features) != (inputs, outputs):
            raise InvalidSpec(
                f"tuning.adapter.source: {source} was made for another model: its {name} has {inputs} inputs and"
                f" {outputs} outputs, and this model's has {layer.in_features} and {layer.out_features}. Name an"
                " adapter of this model"
            )


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
