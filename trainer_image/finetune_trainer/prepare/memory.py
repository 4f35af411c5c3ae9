"""Whether model, adapter and tuning fit each other, rows the model, and the model the GPU.

Called by ``prepare.run``: `check_model` before rows are read, the others when they are known, also where they came from
the cache, whose key leaves tuning out. No weights are loaded.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.contract import ResolvedJob
from finetune_api.tuning import LoraSpec, TuningSpec

from finetune_trainer.errors import InvalidSpec, TrainerError

if TYPE_CHECKING:
    from finetune_trainer.prepare.others import Other

log = logging.getLogger(__name__)

CERTAIN = ("weights", "gradients", "optimizer", "adapters", "reference", "reward")
ESTIMATED = ("activations", "logits", "generation")
OF_STAGES = ("reference", "reward", "generation")
"""Terms that some stages alone have."""


@dataclass(frozen=True)
class Needs:
    """Estimate for one GPU at the job's micro-batch, in bytes by term."""

    terms: dict[str, int]
    certain: int
    total: int
    micro_batch: int
    proposed: int | None
    """Largest micro-batch that should fit, where the GPU's memory is known."""


def check_model(job: ResolvedJob, model: Path, adapter: Path | None) -> None:
    """What training would find out when it loads the model, told before anything is tokenized or a GPU is held: files
    that aren't whole, an adapter of another model, names of layers that this one doesn't have. Raises NotFound,
    InvalidSpec."""
    from finetune_trainer.model import base, build, memory, weights  # torch
    from finetune_trainer.reporting.quiet import quiet

    quiet()
    kind = base.kind_of(job.stage)
    shapes = weights.of_model(model, job.model.source)
    config = base.check(model, job.model.source, allow_remote_code=base.remote_code(job), kind=kind)
    weights.check_model(config, shapes, job.model.source, kind=kind)
    if adapter is not None:
        build.check_fits(model, adapter, job)
    try:
        if adapter is not None and job.tuning.adapter is not None:
            source = job.tuning.adapter.source
            weights.check_adapter(memory.plain(config, kind), weights.of_adapter(adapter, source), source)
        if job.tuning.adapter is None or job.tuning.adapter.mode == "merge":
            memory.without_weights(config, job.tuning, "fp32", extra_tokens(job), kind)
    except TrainerError:
        raise
    except Exception as error:  # that it can't be built without weights doesn't mean that it can't be built
        log.warning("The settings of tuning can't be checked before training: %s: %s", type(error).__name__, error)


def tuning_of(job: ResolvedJob, adapter: Path | None) -> TuningSpec:
    """The job's, where an adapter is continued with the settings that it brings."""
    continued = job.tuning.adapter is not None and job.tuning.adapter.mode == "continue"
    if adapter is None or job.tuning.adapter is None or not continued:
        return job.tuning
    from finetune_trainer.model import folder, weights

    config = folder.check_adapter(adapter, job.tuning.adapter.source)
    shapes = weights.of_adapter(adapter, job.tuning.adapter.source)
    layers = weights.lora(shapes)
    whole = [name.rpartition(".")[2] for name in config.get("modules_to_save") or []]
    brought = {
        "rank": min((rank for _, rank, _ in layers.values()), default=1),  # certain is what is there at least
        "targets": sorted(layers),
        "dora": bool(config.get("use_dora")),
        "modules_to_save": [name for name in whole if any(f".{name}." in weight for weight in shapes)] or None,
    }
    return job.tuning.model_copy(update={"lora": LoraSpec().model_copy(update=brought)})


def extra_tokens(job: ResolvedJob) -> int:
    """How many the job adds to the vocabulary."""
    return len(job.model.new_tokens or []) + len(job.model.new_special_tokens or [])


def check_rows(model: Path, tokens: int, new_tokens: bool, longest: int, highest_id: int) -> None:
    """Without this, a tokenizer of another model ends in an index error deep inside a kernel. ``tokens``: how many the
    tokenizer knows, the job's new ones included."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    text: dict[str, Any] = config.get("text_config") or config
    known = text.get("vocab_size")
    if known and highest_id >= (max(known, tokens) if new_tokens else known):
        raise InvalidSpec(
            f"model.source: its tokenizer makes token {highest_id}, but the model knows {known} tokens:"
            " tokenizer and weights are of different models"
        )
    positions = text.get("max_position_embeddings")
    if positions and longest > positions:
        raise InvalidSpec(
            f"training.cutoffLength: rows are up to {longest} tokens long, but the model is made for {positions}:"
            f" set it to at most {positions}"
        )


def needs(
    job: ResolvedJob, model: Path, longest: int, adapter: Path | None = None, more: "Sequence[Other]" = ()
) -> Needs | None:
    """``more`` are the models besides the job's own. None where it can't be told. Raises InvalidSpec when what is
    certain to be needed is more than the GPU has."""
    from finetune_trainer.model import base, memory  # torch
    from finetune_trainer.prepare import demands
    from finetune_trainer.reporting.quiet import quiet

    quiet()
    training, gpu = job.training, job.runtime.gpu_memory_bytes
    precision: Any = training.precision if training.precision != "auto" else "bf16"
    micro = training.micro_batch_size or 1
    ranks = job.runtime.nodes * max(1, job.runtime.gpus_per_node)
    limit = max(1, training.global_batch_size // ranks)
    kind = base.kind_of(job.stage)
    config = base.check(model, job.model.source, allow_remote_code=base.remote_code(job), kind=kind)
    shares = ranks if training.parallelism == "fsdp" else 1
    tuning = tuning_of(job, adapter)
    common: Any = {"vocab_extra": extra_tokens(job), "precision": precision, "length": longest, "shares": shares}
    try:
        common["demands"] = demands.of(job, more, precision, longest)
        made = memory.estimate(config, tuning, training, micro_batch=micro, **common)
        proposed = memory.propose(config, tuning, training, gpu, limit=limit, **common) if gpu else None
    except Exception as error:  # an estimate is worth no job
        log.warning("GPU memory can't be estimated: %s: %s", type(error).__name__, error)
        return None
    terms = {name: getattr(made, name) for name in (*CERTAIN, *ESTIMATED)}
    found = Needs(
        {name: size for name, size in terms.items() if size or name not in OF_STAGES},
        made.certain,
        made.total,
        micro,
        proposed,
    )
    if gpu and made.certain > gpu:
        parts = ", ".join(f"{name} {gib(found.terms[name])}" for name in CERTAIN if found.terms.get(name))
        raise InvalidSpec(
            f"One GPU has {gib(gpu)}, and this job needs {gib(made.certain)} of each for what no setting of the batch"
            f" changes: {parts}. Use {_ways_out(training.parallelism)}, a smaller model, or larger GPUs"
        )
    if gpu and made.total > gpu:
        hint = f"set training.microBatchSize to {proposed}" if proposed else "lower training.cutoffLength"
        log.warning("One GPU has %s, and this job may need %s: %s", gib(gpu), gib(made.total), hint)
    return found


def _ways_out(parallelism: str) -> str:
    if parallelism == "fsdp":
        return "tuning.method lora, more GPUs (resources.gpusPerNode, resources.nodes)"
    return "tuning.method lora or qlora, training.parallelism fsdp on several GPUs"


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
