"""How many processes train on this node, and on what.

Asks the CUDA driver itself, which takes milliseconds where importing torch takes seconds, and which sees what torch
would see: CUDA_VISIBLE_DEVICES, MIG slices, WSL.
"""

import ctypes
import os

from finetune_api.contract import ResolvedJob

from finetune_trainer.errors import InvalidSpec, NoDevice


def visible_gpus() -> int:
    """GPUs that this process may use; 0 without a driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def ranks_on_node(job: ResolvedJob, visible: int, *, in_cluster: bool) -> int:
    """Ranks to start. In a cluster what the job asked for, on a laptop what there is.

    Raises NoDevice.
    """
    asked = job.runtime.gpus_per_node
    if not in_cluster:
        return max(1, visible)
    if asked == 0:
        return 1
    if visible == 0 and job.runtime.allow_cpu:
        return asked
    if visible < asked:
        raise NoDevice(
            f"The job asked for {asked} GPUs per node, but this pod can use {visible}. Check that the node's driver and"
            " device plugin work and that resources.gpuResource names a resource of real GPUs; a cluster with"
            " make-believe GPUs needs the chart's trainer.allowCpu"
        )
    return asked


def check_batch(job: ResolvedJob, micro_batch_size: int, world_size: int) -> None:
    """The global batch is fixed for a job and shared out evenly. Raises InvalidSpec."""
    whole = job.training.global_batch_size
    if whole % (world_size * micro_batch_size):
        raise InvalidSpec(
            f"training.globalBatchSize is {whole}, which {world_size} processes with a micro-batch of"
            f" {micro_batch_size} can't share evenly: use a multiple of {world_size * micro_batch_size}"
            " (or, on a laptop, fewer GPUs by CUDA_VISIBLE_DEVICES)"
        )


def environment(job: ResolvedJob, visible: int, *, in_cluster: bool) -> dict[str, str]:
    """Hides GPUs that a job didn't ask for: some container runtimes show all of the node's, and a rank that sees more
    than its own would be given a share of its batch on each."""
    asked = job.runtime.gpus_per_node
    if not in_cluster or (visible <= asked and asked > 0):
        return {}
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return {"CUDA_VISIBLE_DEVICES": ",".join((named or [str(index) for index in range(visible)])[:asked])}
