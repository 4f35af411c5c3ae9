"""The metrics of a running job that its progress shows, for Prometheus: the operator reads them from the status, or the
trainer serves them itself (chart value metrics.perJob), under the same names and labels."""

import math
from collections.abc import Mapping
from typing import Any

PREFIX = "finetune_job_"
LABELS = ("namespace", "name", "stage")
PROGRESS_METRICS = {
    "step": "Optimizer steps done.",
    "progress_ratio": "Share of the steps that is done, from 0 to 1.",
    "eta_seconds": "Estimated time to the end.",
    "loss": "Last logged training loss.",
    "tokens_per_second": "Tokens trained per second over all GPUs, without padding.",
    "step_seconds": "Time of an optimizer step.",
    "slowest_rank_ratio": "Own time per step of the slowest rank, divided by the median of the other ranks.",
    "peak_memory_bytes": "Peak host memory of the pod of rank 0.",
}


def progress_values(progress: Mapping[str, Any]) -> dict[str, float]:
    """The values that status.progress has, by name without prefix. Floats are texts there."""
    step, total, eta = (number(progress.get(name)) for name in ("step", "totalSteps", "etaSeconds"))
    if progress.get("activity", "Training") != "Training":
        step = total = None  # they count rows, or nothing
    slowest = progress.get("slowestRank")
    left = total - step if total is not None and step is not None else 0
    values = {
        "step": step,
        "progress_ratio": step / total if step is not None and total else None,
        "eta_seconds": eta,
        "loss": number(progress.get("loss")),
        "tokens_per_second": number(progress.get("tokensPerSecond")),
        "step_seconds": number(progress.get("stepSeconds")) or (eta / left if eta and left > 0 else None),
        "slowest_rank_ratio": number(slowest.get("ratio")) if isinstance(slowest, Mapping) else None,
        "peak_memory_bytes": number(progress.get("memoryBytes")),
    }
    return {name: value for name, value in values.items() if value is not None}


def number(value: Any) -> float | None:
    """A finite number of the status; None if it is none."""
    try:
        parsed = float(value)
    except (TypeError, ValueError):
        return None
    return parsed if math.isfinite(parsed) else None
