"""The CPUs that this container may use. A node has more where a limit is set, and Linux counts them all as there.

Reads cgroup v2, else v1.
"""

import math
import os
from pathlib import Path

from finetune_trainer.runtime.hostmemory import CGROUP

NO_LIMIT = ("max", "-1")
"""In v2 and in v1."""


def usable(root: Path = CGROUP) -> int:
    """As many as the limit rounds up to, and at most those that the process may run on."""
    limit = _limit(root)
    return allowed() if limit is None else min(allowed(), max(1, math.ceil(limit)))


def allowed() -> int:
    """CPUs that the process may run on, whatever the limit says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _limit(root: Path) -> float | None:
    """In CPUs. None: no limit is set or known, as on a laptop."""
    v1 = root / "cpu"
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((v1 / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if quota in NO_LIMIT else int(quota) / int(period)
    except (OSError, ValueError):
        return None
