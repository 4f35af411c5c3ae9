"""Estimates of GPU memory: as a table, and those that prepare pods have made already."""

from collections.abc import Iterable
from typing import Any

from finetune_cli import jobs
from finetune_cli.cluster.client import Object

GPUS = (1, 2, 4, 8)
WHOLE = ("stage", "model", "datasets", "mixing", "evaluation", "template", "tuning", "rm", "dpo", "kto", "ppo")
"""Parts of a spec that decide the memory, or may."""
HARMLESS = frozenset(
    {
        *("epochs", "maxSteps", "learningRate", "scheduler", "minLearningRateRatio", "decayRatio", "schedulerCycles"),
        *("adamBeta1", "adamBeta2", "adamEpsilon", "warmupRatio", "weightDecay", "maxGradNorm", "logEverySteps"),
    }
)
"""Fields of spec.training that decide neither the memory nor the rows."""
SIZES = ("nodes", "gpusPerNode")


def table(found: list[dict[str, Any]]) -> tuple[list[int], list[list[str]]]:
    """The numbers of GPUs, and a row for each method with its name and GiB for each number."""
    numbers = sorted({row["gpus"] for row in found})
    cells = {(row["method"], row["gpus"]): f"{row['bytes'] / 2**30:.1f}" for row in found}
    methods = dict.fromkeys(row["method"] for row in found)
    return numbers, [[method, *(cells[method, number] for number in numbers)] for method in methods]


def length_of(job: Object) -> int:
    """Tokens of the row that an estimate counts with."""
    return int((job["spec"].get("training") or {}).get("cutoffLength", 2048))


def gpus_of(job: Object) -> int:
    """GPUs that train together."""
    resources = job["spec"].get("resources") or {}
    return max(1, int(resources.get("nodes", 1)) * int(resources.get("gpusPerNode", 1)))


def known(job: Object, every: Iterable[Object]) -> tuple[str, int] | None:
    """(name of a job, bytes of each GPU) if a job has been prepared whose settings are the same as far as they decide
    the memory: its prepare pod has seen the rows. ``job`` has its defaults. None if no job was."""
    wanted = _deciding(job)
    for other in sorted(every, key=lambda each: str(each["metadata"].get("creationTimestamp")), reverse=True):
        size = (jobs.status(other).get("prepared") or {}).get("gpuMemoryBytes")
        if size and _deciding(other) == wanted:
            return str(other["metadata"]["name"]), int(size)
    return None


def _deciding(job: Object) -> dict[str, Any]:
    spec = job["spec"]
    training = {name: value for name, value in (spec.get("training") or {}).items() if name not in HARMLESS}
    resources = spec.get("resources") or {}
    sizes = {name: resources.get(name) for name in SIZES}
    return {**{part: spec.get(part) for part in WHOLE}, "training": training, **sizes}
