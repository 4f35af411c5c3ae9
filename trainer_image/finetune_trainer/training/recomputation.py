"""What runs again in the backward pass of this attempt, decided when it starts, by the memory of its GPUs.

`recipe` calls `decide` on every rank. Gradients do not depend on it, so an attempt may decide otherwise than the
attempt that it resumes.
"""

import logging

import torch
from finetune_api.micro_batch import MicroBatch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_trainer import collectives
from finetune_trainer.model import freeze, recomputation
from finetune_trainer.prepare.footprint import Footprint, Recomputation
from finetune_trainer.run import Run
from finetune_trainer.runtime import gpumemory

log = logging.getLogger(__name__)


def decide(run: Run, model: PreTrainedModel | PeftModel) -> Recomputation:
    """The same on every rank: the GPU with the least memory decides. On CPUs, auto is none: models that are trained
    there are small, and their memory is what the job requests."""
    mode = run.attempt.recompute or run.job.training.recomputed
    gpu, footprint = _smallest_gpu(), Footprint.read(run.prepared.memory)
    on_cpu = not torch.cuda.is_available()
    if footprint is None:
        layers = len(freeze.find_layers(model)[1])
        some = {"auto": 0 if on_cpu else layers, "none": 0, "layers": -(-layers // 2), "all": layers}[mode]
        possible = recomputation.of_model(model)
        chosen = Recomputation(0 if possible == "none" else layers if some and possible == "all" else some, layers)
    elif mode == "auto" and on_cpu:
        chosen = footprint.recompute(0)
    else:
        chosen = footprint.choose(mode, run.micro_batch, gpu)
    gpumemory.record_recomputation(str(chosen))
    if run.is_main:
        log.info("recomputed in the backward pass: %s%s", chosen, _why(footprint, chosen, run.micro_batch, gpu))
    return chosen


def _why(footprint: Footprint | None, chosen: Recomputation, micro_batch: MicroBatch, gpu: int | None) -> str:
    if footprint is None or gpu is None:
        return ""
    needed = footprint.at(micro_batch, chosen).total
    return f" (estimated: {needed / 2**30:.1f} of {gpu / 2**30:.1f} GiB)"


def _smallest_gpu() -> int | None:
    """Bytes of the GPU with the least memory, over all ranks. None on CPUs."""
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    memory = torch.cuda.get_device_properties(device).total_memory
    return int(min(size for (size,) in collectives.all_gather([memory], device)))
