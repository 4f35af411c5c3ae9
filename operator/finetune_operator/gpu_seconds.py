"""The metric finetune_gpu_seconds_total: GPU time by namespace, stage and use, from the statuses that are seen.

The counters add what a status has more than the status of the same job before it, so they count only what happened
since the process started, and cost no request. A run at hand counts as far as its trainer has reported. When it has
ended, status.gpu has the rest. A counter never goes down: an amount that becomes smaller adds nothing until it is
reached again.
"""

from collections import defaultdict
from collections.abc import Callable
from datetime import datetime

from finetune_api.status import USES

from finetune_operator.exposition import Labels, Samples
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Key, Raw, Unreadable, parse_time, section

CLOCKS_DIFFER_SECONDS = 60.0


class GpuSeconds:
    """The counters of one process."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._counters: dict[Labels, float] = defaultdict(float)
        """By namespace, stage and use."""
        self._counted: dict[Key, tuple[str, dict[str, float]]] = {}
        """The uid of each job, and its seconds by use that were there before or are counted."""

    def changed(self, before: JobView | None, after: JobView | None) -> None:
        """A job has a new version, is new to this process, or is forgotten."""
        if after is None:
            if before is not None:
                self._counted.pop(before.key, None)
            return
        amounts = gpu_seconds(after.status, self._clock())
        uid, counted = self._counted.get(after.key, ("", {}))
        if uid != after.uid:
            # Its time until now was counted by an earlier process, if it has any.
            self._counted[after.key] = after.uid, amounts
            return
        stage = str(after.spec.get("stage") or "")
        for use, seconds in amounts.items():
            if (more := seconds - counted.get(use, 0.0)) > 0:
                self._counters[after.namespace, stage, use] += more
                counted[use] = seconds

    def samples(self) -> Samples:
        return {labels: round(seconds, 3) for labels, seconds in self._counters.items()}


def gpu_seconds(status: Raw, now: datetime) -> dict[str, float]:
    """GPU seconds by use that a status has: of the runs that have ended, and of the run at hand as far as its trainer
    has reported. The trainer's part may be anything: it counts no more than the time since the run has begun."""
    gpu = section(status, "gpu")
    amounts: dict[str, float] = {use: float(seconds) for use, seconds in section(gpu, "uses").items() if use in USES}
    run, uses = section(gpu, "run"), section(section(status, "progress"), "uses")
    if not run or uses.get("run") != run.get("id"):
        return amounts
    try:
        held, began = parse_time(str(run.get("since"))), parse_time(str(uses.get("since")))
        gpus = int(run.get("gpus", 0))
        reported = {use: float(ms) / 1000 for use, ms in section(uses, "milliseconds").items() if use in USES}
    except (Unreadable, TypeError, ValueError):
        return amounts
    reported["startup"] = max(0.0, (began - held).total_seconds())
    too_much = sum(reported.values()) > (now - held).total_seconds() + CLOCKS_DIFFER_SECONDS
    if too_much or min(reported.values()) < 0:
        return amounts
    for use, seconds in reported.items():
        amounts[use] = amounts.get(use, 0.0) + gpus * seconds
    return amounts
