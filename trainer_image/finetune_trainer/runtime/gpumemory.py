"""GPU memory that is used up: how to recognise it, and what to report.

Used by `exit_report`, `launcher.supervise`, `training.evaluation` and `generation.batched`. Imports no torch: a process
that ran out of GPU memory has imported it.
"""

import re
import sys
from collections.abc import Iterator
from typing import Any, Literal

from finetune_api.micro_batch import MicroBatch, first_micro_batch
from finetune_api.status import OutOfMemory

from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.hostmemory import gibibytes

Phase = Literal["load", "train", "evaluate", "generate", "save"]
_recomputation: list[str] = []
"""What this process recomputes, once it has decided."""
ROWS = "finetune_rows"
"""Attribute of an error: the rows that were processed at once, when that is not the micro-batch."""


NAMES = re.compile(
    # torch's allocator; the CUDA runtime and driver, which torch, Triton and libraries call beside it. The driver
    # allocates expandable segments.
    r"\b(CUDA|HIP|XPU) out of memory\b|\b(CUDA|HIP)( driver)? error: out of memory\b"
    r"|CUDA ran out of memory outside PyTorch's allocator|Triton Error \[(CUDA|HIP)\]: out of memory"
    r"|\b(cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|hipErrorOutOfMemory|hipErrorMemoryAllocation)\b"
    # cuBLAS, cuDNN and their like. cuDNN 9 has one name for the GPU's memory and one for the host's.
    r"|\b(CU|HIP|ROC)[A-Z]+_STATUS_ALLOC_FAILED\b|CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
    # NCCL, where the last error follows ncclUnhandledCudaError; RCCL uses the same words.
    r"|\b(Cuda|HIP) failure (2 )?'out of memory'|Failed to CUDA calloc"
    # bitsandbytes, which writes this to stderr and exits.
    r"|\bError out of memory at line \d+ in file "
)
"""What libraries call it. None of these names covers the host's memory or a kernel's shared memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, or a library below it, could not allocate GPU memory."""
    by_torch = type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("torch")
    return by_torch or (not isinstance(error, MemoryError) and tells_of_it(str(error)))


def tells_of_it(text: str) -> bool:
    """Whether an error message or the end of a log says that GPU memory was used up."""
    return NAMES.search(text) is not None


def sentence(text: str) -> str:
    """The last line of a log that says so; '' without one."""
    return next((line.strip() for line in reversed(text.splitlines()) if tells_of_it(line)), "")


def record_recomputation(what: str) -> None:
    """Remember what is recomputed in the backward pass, for `details`."""
    _recomputation[:] = [what]


def details(error: BaseException, rank: int, micro_batch: MicroBatch) -> OutOfMemory:
    """What is known right after the error. The phase is that of this rank's last heartbeat."""
    peak, free = _measure()
    rows = next((rows for cause in _causes(error) if (rows := getattr(cause, ROWS, None))), None)
    known = details_in(heartbeat.last().phase, rank, micro_batch if rows is None else MicroBatch(rows))
    return known.model_copy(
        update={"recompute": next(iter(_recomputation), None), "peak_bytes": peak, "free_bytes": free}
    )


def details_in(beaten: heartbeat.Phase, rank: int, micro_batch: MicroBatch) -> OutOfMemory:
    """What is known of a process that has ended; ``beaten`` is the phase of its last heartbeat."""
    phase: Phase = "save" if beaten == "finish" else beaten
    return OutOfMemory(phase=phase, rank=rank).model_copy(update=micro_batch.fields())


def describe(memory: OutOfMemory) -> str:
    """The details as a part of a sentence."""
    peak = f", {gibibytes(memory.peak_bytes)} held by tensors at most" if memory.peak_bytes is not None else ""
    free = f", {gibibytes(memory.free_bytes)} free" if memory.free_bytes is not None else ""
    return f"in phase {memory.phase} with a micro-batch of {first_micro_batch(memory)}{peak}{free}"


def _measure() -> tuple[int | None, int | None]:
    """(peak of all tensors, free memory) in bytes; None where no GPU answers."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None, None
    try:
        return int(torch.cuda.max_memory_allocated()), int(torch.cuda.mem_get_info()[0])
    except RuntimeError:  # after some errors the device answers nothing
        return None, None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
