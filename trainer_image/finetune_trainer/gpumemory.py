"""A GPU whose memory is used up: how that is recognised, and what is told of it.

Used by `results` and `stages.evaluation`. Imports no torch: whoever ran out of it has.
"""

import sys
from collections.abc import Iterator
from typing import Any, Literal

from finetune_api.status import OutOfMemory

from finetune_trainer import heartbeat
from finetune_trainer.hostmemory import gibibytes

Phase = Literal["load", "train", "evaluate", "generate", "save"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, or a library below it, found no room on the GPU."""
    by_torch = type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch")
    return by_torch or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def details(error: BaseException, rank: int, micro_batch_size: int) -> OutOfMemory:
    """What is known right after. The phase is what this rank said last that it was doing."""
    at = heartbeat.last().phase
    phase: Phase = "save" if at == "finish" else at
    peak, free = _measured()
    rows = next((rows for cause in _causes(error) if (rows := getattr(cause, ROWS, None))), micro_batch_size)
    return OutOfMemory(phase=phase, rank=rank, micro_batch_size=rows, peak_bytes=peak, free_bytes=free)


ROWS = "finetune_rows"
"""Attribute of an error: rows held at once, where they were not the micro-batch."""


def describe(memory: OutOfMemory) -> str:
    """For people."""
    peak = f", {gibibytes(memory.peak_bytes)} held by tensors at most" if memory.peak_bytes is not None else ""
    free = f", {gibibytes(memory.free_bytes)} free" if memory.free_bytes is not None else ""
    return f"in phase {memory.phase} with a micro-batch of {memory.micro_batch_size}{peak}{free}"


def _measured() -> tuple[int | None, int | None]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None, None
    try:
        return int(torch.cuda.max_memory_allocated()), int(torch.cuda.mem_get_info()[0])
    except RuntimeError:  # a device that is beyond saying anything
        return None, None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
