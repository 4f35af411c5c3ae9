"""provenance.json: what the artifact was made of, so that it can be made again.

Called by workflows on rank 0 after training.
"""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from types import MappingProxyType
from typing import Any, Literal

import torch
from finetune_api.contract import source_of

from finetune_trainer.run import Run

PACKAGES = ("finetune-trainer", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
IMAGE = "FINETUNE_IMAGE"
"""Environment variable with the trainer image's name, where the pod has it."""


def collect(
    run: Run,
    metrics: dict[str, float],
    total_steps: int,
    precision: str,
    settled: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Digests, versions, seed and the resolved job, which names Secrets but never holds their values; of other jobs
    whose artifacts this one used, which exactly; and ``settled``, the settings of the stage's section that came out
    while it ran, as they came out."""
    job, prepared = run.job, run.prepared
    evaluated = (job.evaluation.datasets if job.evaluation else None) or []
    return {
        "job": run.job.to_dict(),
        "namespace": run.attempt.namespace,
        "uid": run.attempt.uid,
        "attempt": run.attempt.attempt,
        "run": run.run_id,
        "image": os.environ.get(IMAGE),
        "model": _source(run, job.model.source),
        "adapter": _source(run, job.tuning.adapter.source) if job.tuning.adapter else None,
        "reference": _named(run, "reference"),
        "rewardModel": _named(run, "rewardModel"),
        "references": [one.to_dict() for one in job.references],
        "data": [_source(run, dataset.source) for dataset in job.datasets],
        "evaluation": [_source(run, dataset.source) for dataset in evaluated],
        "prepared": prepared.summary.digest,
        "template": prepared.template,
        "settled": dict(settled),
        "seed": run.job.training.seed,
        "steps": metrics["train_steps"],
        "stepsPlanned": total_steps,
        "weightsStep": metrics.get("weights_step", metrics["train_steps"]),
        "precision": precision,
        "worldSize": run.world_size,
        "microBatchSize": run.micro_batch_size,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})",
        "python": platform.python_version(),
        "versions": versions(),
        "metrics": metrics,
        "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


@cache
def versions() -> dict[str, str]:
    """Of the libraries that decide what comes out."""
    return {package: metadata.version(package) for package in PACKAGES}


def _named(run: Run, use: Literal["reference", "rewardModel"]) -> dict[str, str | None] | None:
    """What the stage compared with or was scored by, where the job names a model for it."""
    source = source_of(run.job, use)
    return _source(run, source) if source else None


def _source(run: Run, source: str) -> dict[str, str | None]:
    """What was read, and exactly which: its digest, and the commit where it came from a hub."""
    prepared = run.prepared
    return {"source": source, "digest": prepared.digests.get(source), "revision": prepared.revisions.get(source)}
