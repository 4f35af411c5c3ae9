"""Estimates of GPU memory for a job by tuning method and number of GPUs, from the config of its model alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune_api.contract import ResolvedJob
from finetune_api.micro_batch import MicroBatch
from finetune_api.tuning import FreezeSpec, LoraSpec, QuantizationSpec, TuningSpec

METHODS = ("lora", "qlora", "freeze", "full")


def estimates(job: ResolvedJob, folder: Path, gpus: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each method and number of GPUs, at a micro-batch of one row of `training.cutoffLength` tokens. Several
    GPUs share the model (fsdp), but for qlora, whose weights cannot be sharded."""
    from transformers import AutoConfig

    from finetune_trainer.model import base
    from finetune_trainer.prepare import memory_estimate
    from finetune_trainer.prepare.stage_requirements import stage_requirements
    from finetune_trainer.reporting.library_logs import silence_libraries

    silence_libraries()
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    precision: base.Precision = job.training.precision if job.training.precision != "auto" else "bf16"
    length = job.training.cutoff_length
    for method in METHODS:
        varied = job.model_copy(update={"tuning": tuning(job, method)})
        for ranks in gpus:
            parallelism = "fsdp" if ranks > 1 and method != "qlora" else "ddp"
            training = job.training.model_copy(
                update={
                    "parallelism": parallelism,
                    "micro_batch_size": 1,
                    "micro_batch_tokens": None,
                    "global_batch_size": max(ranks, job.training.global_batch_size // ranks * ranks),
                }
            )
            footprint = memory_estimate.footprint(
                config,
                varied.tuning,
                training,
                precision=precision,
                length=length,
                ranks=ranks,
                requirements=stage_requirements(varied, (), precision, length),
            )
            every = footprint.at(MicroBatch(1), footprint.recompute(footprint.layers))
            none = footprint.at(MicroBatch(1), footprint.recompute(0))
            yield {
                "method": method,
                "gpus": ranks,
                "parallelism": parallelism,
                "certainBytes": every.certain,
                "bytes": every.total,
                "bytesWithoutRecomputing": none.total,
            }


def tuning(job: ResolvedJob, method: str) -> TuningSpec:
    """The job's tuning by another method, with the job's own settings where they apply."""
    with_adapter = method in ("lora", "qlora")
    return job.tuning.model_copy(
        update={
            "method": method,
            "lora": (job.tuning.lora or LoraSpec(alpha=16)) if with_adapter else None,
            "quantization": (job.tuning.quantization or QuantizationSpec()) if method == "qlora" else None,
            "freeze": (job.tuning.freeze or FreezeSpec()) if method == "freeze" else None,
            "adapter": None,
        }
    )
