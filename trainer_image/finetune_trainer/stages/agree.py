"""What ranks tell each other. Every rank must come here, or the others wait until the collective's time-out."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed


def share(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """Each rank's values, in the order of ranks."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return [list(values)]
    mine = torch.tensor(values, dtype=torch.float64, device=device)
    all_of_them = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(all_of_them, mine)
    return [one.tolist() for one in all_of_them]


def gather(value: Any, group: Any = None) -> list[Any]:
    """Each rank's value, whatever it is, in the order of ranks."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value, group)
    return values


def from_main(value: Any, group: Any = None) -> Any:
    """Rank 0's value on every rank."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0, group=group)
    return box[0]


def own_group(patience: timedelta = timedelta(hours=2)) -> Any:
    """Another line between all ranks, for a thread that works beside training: what it says there can't get mixed up
    with training's own exchanges, nor wait for a GPU. None where there is one rank."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return None
    return distributed.new_group(backend="gloo", timeout=patience)
