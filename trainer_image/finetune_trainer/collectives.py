"""Collectives: what ranks exchange. Every rank must call each of them, or the others wait until the time-out."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

COLLECTIVE_TIMEOUT = timedelta(days=14)
BROKEN = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection refused", "nccl error")
"""Words of errors that another rank causes."""


def _is_alone() -> bool:
    return not distributed.is_initialized() or distributed.get_world_size() == 1


def all_gather(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """[ranks][values]: the numbers of each rank, in the order of ranks."""
    if _is_alone():
        return [list(values)]
    local = torch.tensor(values, dtype=torch.float64, device=device)
    by_rank = [torch.empty_like(local) for _ in range(distributed.get_world_size())]
    distributed.all_gather(by_rank, local)
    return [rank.tolist() for rank in by_rank]


def all_gather_objects(value: Any, group: Any = None) -> list[Any]:
    """[ranks]: the object of each rank, of any type, in the order of ranks."""
    if _is_alone():
        return [value]
    by_rank: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(by_rank, value, group)
    return by_rank


def broadcast(value: Any, group: Any = None) -> Any:
    """The object of rank 0, on every rank."""
    if _is_alone():
        return value
    objects = [value]
    distributed.broadcast_object_list(objects, src=0, group=group)
    return objects[0]


def new_group(timeout: timedelta = timedelta(hours=2)) -> Any:
    """Another process group of all ranks, for a thread that works beside training: its collectives do not get mixed up
    with those of training, and wait for no GPU. None with a single rank."""
    if _is_alone():
        return None
    return distributed.new_group(backend="gloo", timeout=timeout)


def is_broken(error: BaseException) -> bool:
    """Whether a collective failed because of another rank. torch has no class of its own for all of these errors, so
    names and words decide."""
    is_from_torch = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    words = str(error).lower()
    return is_from_torch or (isinstance(error, RuntimeError) and any(word in words for word in BROKEN))
