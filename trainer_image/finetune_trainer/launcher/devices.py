"""How many processes train on this node, and on which GPUs.

Asks the driver itself, CUDA's or ROCm's. This takes milliseconds, and importing torch takes seconds. The driver
respects what torch respects: CUDA_VISIBLE_DEVICES (on ROCm also HIP_VISIBLE_DEVICES), MIG slices, WSL.
"""

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from finetune_api.contract import ResolvedJob
from finetune_api.micro_batch import MicroBatch

from finetune_trainer.errors import InvalidSpec, NoDevice


def visible_gpus() -> int:
    """Number of GPUs that this process may use; 0 without a driver."""
    return _cuda_gpus() or _rocm_gpus()


def _cuda_gpus() -> int:
    cuda = _library("libcuda.so.1")
    count = ctypes.c_int(0)
    if cuda is None or cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _rocm_gpus() -> int:
    """The runtime counts, as ROCm has no library of its driver. It is part of torch for ROCm, or in /opt/rocm."""
    hip = next(filter(None, map(_library, _rocm_runtimes())), None)
    count = ctypes.c_int(0)
    if hip is None or hip.hipGetDeviceCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _rocm_runtimes() -> Iterator[str]:
    """Places of the ROCm runtime, the likeliest first. Finding torch does not import it."""
    torch = importlib.util.find_spec("torch")
    for folder in [Path(place, "lib") for place in (torch and torch.submodule_search_locations) or ()]:
        yield from map(str, sorted(folder.glob("libamdhip64.so*")))
    yield from ("libamdhip64.so", *(f"libamdhip64.so.{version}" for version in (7, 6, 5)))
    yield str(Path(os.environ.get("ROCM_PATH", "/opt/rocm"), "lib", "libamdhip64.so"))


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def ranks_on_node(job: ResolvedJob, visible: int, *, in_cluster: bool) -> int:
    """Number of ranks to start: in a cluster the GPUs that the job requests, on a laptop those that are visible. At
    least 1. Raises NoDevice.
    """
    requested = job.runtime.gpus_per_node
    if not in_cluster:
        return max(1, visible)
    if requested == 0:
        return 1
    if visible == 0 and job.runtime.allow_cpu:
        return requested
    if visible < requested:
        raise NoDevice(
            f"The job requests {requested} GPUs per node, but this pod can use {visible}. Training needs all of them."
            " Check that the node's driver and device plugin work and that resources.gpuResource names a resource of"
            " real GPUs. A cluster with simulated GPUs needs the chart's trainer.allowCpu"
        )
    return requested


def check_batch(job: ResolvedJob, micro_batch: MicroBatch, world_size: int) -> None:
    """Raises InvalidSpec when the ranks cannot share the global batch evenly."""
    global_batch = job.training.global_batch_size
    rows = micro_batch.size if micro_batch.unit == "rows" else 1
    if global_batch % (world_size * rows):
        with_rows = f" with a micro-batch of {rows}" if micro_batch.unit == "rows" else ""
        raise InvalidSpec(
            f"training.globalBatchSize is {global_batch}, which {world_size} processes{with_rows} cannot share evenly."
            f" Use a multiple of {world_size * rows}"
            " (or, on a laptop, fewer GPUs by CUDA_VISIBLE_DEVICES)"
        )


def environment(job: ResolvedJob, visible: int, *, in_cluster: bool) -> dict[str, str]:
    """Variables that hide GPUs which the job does not request. Some container runtimes show all GPUs of the node, and a
    single rank that sees several would train on all of them."""
    requested = job.runtime.gpus_per_node
    if not in_cluster or (visible <= requested and requested > 0):
        return {}
    devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return {"CUDA_VISIBLE_DEVICES": ",".join((devices or [str(index) for index in range(visible)])[:requested])}
