"""The settings of an adapter that somebody else made, before peft builds it.

`saved_adapter.check_fits` and `referenced_models` call it in preparation: the weights in a file have the size of the
file, but what adapter_config.json asks for may have any size, and would first be built where GPUs are held.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model.model_files import ADAPTER_CONFIG
from finetune_trainer.model.weight_shapes import Shapes, lora_layers
from finetune_trainer.runtime import bounds

PATTERNS = ("target_modules", "exclude_modules", "layers_pattern")
"""Settings that are regular expressions if they are texts."""
BY_PATTERN = ("rank_pattern", "alpha_pattern")
"""Settings whose keys are regular expressions."""
LARGEST_RANK = 1 << 16


def check(config: Mapping[str, Any], shapes: Shapes, names: Iterable[str], source: str, field: str) -> None:
    """``shapes`` are the weights in the adapter's file, ``names`` the layers that patterns are held against. Raises
    InvalidSpec."""
    what = f"{field}: {source}/{ADAPTER_CONFIG}"
    if config.get("layer_replication"):
        raise InvalidSpec(f"{what} has layer_replication, which is not supported. Name an adapter without it")
    by_pattern = {name: config.get(name) or {} for name in BY_PATTERN}
    if strange := [name for name, value in by_pattern.items() if not isinstance(value, dict)]:
        raise InvalidSpec(f"{what} has a {strange[0]} that is no object. Copy the adapter again")
    _check_ranks(config.get("r", 8), by_pattern["rank_pattern"], shapes, what)
    patterns = [value for name in PATTERNS if isinstance(value := config.get(name), str)]
    patterns += [pattern for value in by_pattern.values() for pattern in value]
    try:
        with bounds.bounded("matching its patterns"):
            for pattern in patterns:
                compiled = re.compile(rf"(?:.*\.)?(?:{pattern})$")
                for name in names:
                    compiled.match(name)
    except (re.error, RecursionError, OverflowError, bounds.TooMuch) as error:
        raise InvalidSpec(f"{what} has a pattern that can't be used: {error}. Name the layers instead") from None


def _check_ranks(default: object, ranks: Mapping[str, object], shapes: Shapes, what: str) -> None:
    largest = max((rank for _, rank, _ in lora_layers(shapes).values()), default=LARGEST_RANK)
    for rank in (default, *ranks.values()):
        if not isinstance(rank, int) or not 0 < rank <= LARGEST_RANK or (rank > largest and not ranks):
            raise InvalidSpec(
                f"{what} has the rank {rank!r}, and the weights beside it have rank {largest}. Copy both again"
            )
