"""Whether rows fit the model, and whether the model fits the GPU.

Called by ``prepare.run`` when the rows are known, also where they came from the cache, whose key leaves tuning out.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.contract import ResolvedJob

from finetune_trainer.errors import InvalidSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Needs:
    """Estimate for one GPU at the job's micro-batch, in bytes by term."""

    terms: dict[str, int]
    certain: int
    total: int
    micro_batch: int
    proposed: int | None
    """Largest micro-batch that should fit, where the GPU's memory is known."""


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


def needs(job: ResolvedJob, model: Path, longest: int) -> Needs | None:
    """None where it can't be told. Raises InvalidSpec when what is certain to be needed is more than the GPU has."""
    from finetune_trainer.model import base, memory  # torch
    from finetune_trainer.reporting.quiet import quiet

    quiet()
    training, gpu = job.training, job.runtime.gpu_memory_bytes
    precision: Any = training.precision if training.precision != "auto" else "bf16"
    extra = len(job.model.new_tokens or []) + len(job.model.new_special_tokens or [])
    micro = training.micro_batch_size or 1
    ranks = job.runtime.nodes * max(1, job.runtime.gpus_per_node)
    limit = max(1, training.global_batch_size // ranks)
    config = base.check(model, job.model.source, allow_remote_code=base.remote_code(job))
    shares = ranks if training.parallelism == "fsdp" else 1
    common: Any = {"vocab_extra": extra, "precision": precision, "length": longest, "shares": shares}
    try:
        made = memory.estimate(config, job.tuning, training, micro_batch=micro, **common)
        proposed = memory.propose(config, job.tuning, training, gpu, limit=limit, **common) if gpu else None
    except InvalidSpec:
        raise
    except Exception as error:  # an estimate is worth no job
        log.warning("GPU memory can't be estimated: %s: %s", type(error).__name__, error)
        return None
    names = ("weights", "gradients", "optimizer", "adapters", "activations", "logits")
    found = Needs({name: getattr(made, name) for name in names}, made.certain, made.total, micro, proposed)
    if gpu and made.certain > gpu:
        terms = ", ".join(f"{name} {gib(found.terms[name])}" for name in names[:4] if found.terms[name])
        raise InvalidSpec(
            f"One GPU has {gib(gpu)}, and this job needs {gib(made.certain)} of each for what no setting of the batch"
            f" changes: {terms}. Use {_ways_out(training.parallelism)}, a smaller model, or larger GPUs"
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
