"""What ranks tell each other. Every rank must come here, or the others wait until the collective's time-out."""

from collections.abc import Sequence
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


def from_main(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def wait_for_all() -> None:
    """Return when every rank is here."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.barrier()
