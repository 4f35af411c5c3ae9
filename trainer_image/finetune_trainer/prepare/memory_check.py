"""Whether the model fits into the memory of a GPU, by `memory_estimate`: what is certain decides, the rest warns."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.contract import ResolvedJob
from finetune_api.micro_batch import MicroBatch, first_micro_batch
from finetune_api.tuning import LoraSpec, TuningSpec

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.prepare.footprint import Footprint
from finetune_trainer.prepare.model_check import extra_tokens

if TYPE_CHECKING:
    from finetune_trainer.prepare.referenced_models import ReferencedModel

log = logging.getLogger(__name__)

CERTAIN = ("weights", "gradients", "optimizer", "adapters", "reference", "reward")
ESTIMATED = ("exchange", "casts", "activations", "backward", "logits", "generation")
OPTIONAL = ("reference", "reward", "exchange", "casts", "generation")
"""Terms that only some jobs have."""


@dataclass(frozen=True)
class MemoryNeeds:
    """Estimate for a GPU at the job's micro-batch. The names of the fields are those of the report in JSON."""

    terms: dict[str, int]
    """Term -> bytes."""
    certain: int
    """Bytes."""
    total: int
    """Bytes."""
    micro_batch: int
    unit: str
    """What the micro-batch counts: rows or tokens."""
    recompute: str
    """Layers that are recomputed with this micro-batch."""
    proposed: int | None
    """Largest micro-batch that should fit with as many layers recomputed, if the GPU's memory is known. In the unit of
    the job's own."""
    gpu: int | None
    """Bytes of a GPU, if known."""


def continued_tuning(job: ResolvedJob, adapter: Path | None) -> TuningSpec:
    """The job's tuning; if it continues an adapter, with the settings of that adapter."""
    continues = job.tuning.adapter is not None and job.tuning.adapter.mode == "continue"
    if adapter is None or job.tuning.adapter is None or not continues:
        return job.tuning
    from finetune_trainer.model import model_files, weight_shapes  # torch

    config = model_files.check_adapter(adapter, job.tuning.adapter.source)
    shapes = weight_shapes.of_adapter(adapter, job.tuning.adapter.source)
    layers = weight_shapes.lora_layers(shapes)
    saved = [name.rpartition(".")[2] for name in config.get("modules_to_save") or []]
    settings = {
        "rank": min((rank for _, rank, _ in layers.values()), default=1),  # certain is what is needed at least
        "targets": sorted(layers),
        "dora": bool(config.get("use_dora")),
        "modules_to_save": [name for name in saved if any(f".{name}." in weight for weight in shapes)] or None,
    }
    return job.tuning.model_copy(update={"lora": LoraSpec().model_copy(update=settings)})


def footprint_of(
    job: ResolvedJob,
    model: Path,
    longest: int,
    adapter: Path | None = None,
    referenced: "Sequence[ReferencedModel]" = (),
) -> Footprint | None:
    """What decides the memory that a GPU needs. ``longest``: tokens of the longest row. None if no estimate is
    possible. Raises InvalidSpec if the model's code can't recompute what the job asks for."""
    from finetune_trainer.model import base  # torch
    from finetune_trainer.prepare import memory_estimate  # torch
    from finetune_trainer.prepare.stage_requirements import stage_requirements  # torch
    from finetune_trainer.reporting.library_logs import silence_libraries  # transformers

    silence_libraries()
    training, kind = job.training, base.kind_of(job.stage)
    precision: base.Precision = training.precision if training.precision != "auto" else "bf16"
    config = base.check(model, job.model.source, allow_remote_code=base.remote_code(job), kind=kind)
    try:
        footprint = memory_estimate.footprint(
            config,
            continued_tuning(job, adapter),
            training,
            vocab_extra=extra_tokens(job),
            precision=precision,
            length=longest,
            ranks=job.runtime.nodes * max(1, job.runtime.gpus_per_node),
            masks=_masks(job, config, precision),
            requirements=stage_requirements(job, referenced, precision, longest),
        )
    except Exception as error:  # a failed estimate must not fail the job
        log.warning("GPU memory cannot be estimated: %s: %s", type(error).__name__, error)
        return None
    if footprint.recomputable == "none" and training.recomputed in ("layers", "all"):
        raise InvalidSpec(
            f"training.recompute is {training.recomputed}, and the code of {job.model.source} can't recompute layers."
            " Use auto or none"
        )
    return footprint


def _masks(job: ResolvedJob, config: Any, precision: Any) -> Any:
    """What attention needs for each pair of positions of a row: nothing if it knows the documents without a mask."""
    from finetune_trainer.model import attention  # torch
    from finetune_trainer.prepare import memory_estimate  # torch

    named = job.model.attention
    if named == "flashAttention2" or (named == "auto" and attention.documents_obstacle(config) is None):
        return memory_estimate.NO_MASKS
    return memory_estimate.masks_of(named, config, precision)


def check_memory(job: ResolvedJob, footprint: Footprint) -> MemoryNeeds:
    """What a GPU needs at the job's micro-batch. Raises InvalidSpec if what is certain to be needed exceeds the GPU's
    memory."""
    gpu, micro_batch = job.runtime.gpu_memory_bytes, first_micro_batch(job.training) or MicroBatch(1)
    recomputed = footprint.choose(job.training.recomputed, micro_batch, gpu)
    estimate = footprint.at(micro_batch, recomputed)
    proposed = footprint.largest_micro_batch(recomputed, gpu, micro_batch.unit) if gpu else None
    terms = {name: getattr(estimate, name) for name in (*CERTAIN, *ESTIMATED)}
    needs = MemoryNeeds(
        {name: size for name, size in terms.items() if size or name not in OPTIONAL},
        estimate.certain,
        estimate.total,
        micro_batch.size,
        micro_batch.unit,
        str(recomputed),
        proposed.size if proposed else None,
        gpu,
    )
    if gpu:
        _compare(needs, gpu, job.training.parallelism)
    return needs


def _compare(needs: MemoryNeeds, gpu: int, parallelism: str) -> None:
    if needs.certain > gpu:
        parts = ", ".join(f"{name} {gib(needs.terms[name])}" for name in CERTAIN if needs.terms.get(name))
        raise InvalidSpec(
            f"One GPU has {gib(gpu)}, and this job needs {gib(needs.certain)} per GPU at any batch size: {parts}."
            f" Use {_remedies(parallelism)}, a smaller model, or larger GPUs"
        )
    if needs.total > gpu:
        smaller = needs.proposed if needs.proposed and needs.proposed < needs.micro_batch else None
        field = "microBatchTokens" if needs.unit == "tokens" else "microBatchSize"
        remedy = f"Set training.{field} to {smaller}" if smaller else "Lower training.cutoffLength"
        if needs.recompute != "all":
            remedy = f"Set training.recompute to auto. {remedy}"
        log.warning("One GPU has %s, and this job may need %s. %s", gib(gpu), gib(needs.total), remedy)


def _remedies(parallelism: str) -> str:
    if parallelism == "fsdp":
        return "tuning.method lora, more GPUs (resources.gpusPerNode, resources.nodes)"
    return "tuning.method lora or qlora, training.parallelism fsdp on several GPUs"


def gib(size: int) -> str:
    """Bytes, for messages."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
