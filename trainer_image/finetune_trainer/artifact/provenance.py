"""provenance.json: everything that decided the artifact, so that the training can be repeated.

Called by workflows on rank 0 after training.
"""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

import torch
from finetune_api.contract import source_of

from finetune_trainer.run import Run
from finetune_trainer.runtime.versions import versions

IMAGE = "FINETUNE_IMAGE"
"""Environment variable with the name of the trainer image; unset outside of a pod."""


def collect(
    run: Run,
    metrics: dict[str, float],
    total_steps: int,
    precision: str,
    recompute: str,
    effective_settings: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """The content of provenance.json: digests, versions, seed, the resolved job (it names Secrets but never has their
    values) and the exact artifacts of other jobs. ``effective_settings`` are settings of the stage's section that were
    decided during the run, with their final values."""
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
        "reference": _model_of(run, "reference"),
        "rewardModel": _model_of(run, "rewardModel"),
        "references": [reference.to_dict() for reference in job.references],
        "data": [_source(run, dataset.source) for dataset in job.datasets],
        "evaluation": [_source(run, dataset.source) for dataset in evaluated],
        "prepared": prepared.summary.digest,
        "template": prepared.template,
        "settled": dict(effective_settings),
        "seed": run.job.training.seed,
        "steps": metrics["train_steps"],
        "stepsPlanned": total_steps,
        "weightsStep": metrics.get("weights_step", metrics["train_steps"]),
        "precision": precision,
        "worldSize": run.world_size,
        "microBatchSize": run.micro_batch.fields()["micro_batch_size"],
        "microBatchTokens": run.micro_batch.fields()["micro_batch_tokens"],
        "recompute": recompute,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})",
        "python": platform.python_version(),
        "versions": versions(),
        "metrics": metrics,
        "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _model_of(run: Run, use: Literal["reference", "rewardModel"]) -> dict[str, str | None] | None:
    """The reference or reward model that the job names, if any."""
    source = source_of(run.job, use)
    return _source(run, source) if source else None


def _source(run: Run, source: str) -> dict[str, str | None]:
    """A source, the digest of its files, and its commit when it is on a hub."""
    prepared = run.prepared
    return {"source": source, "digest": prepared.digests.get(source), "revision": prepared.revisions.get(source)}
