"""The host memory of this container, by the kernel's count: limit, peak, use, and processes killed for memory.

`launcher.supervise` reads it before the ranks start and after they end, `reporting.status` during training. Reads
cgroup v2, else v1. All values are None outside of a container and on kernels that do not count.
"""

from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60
"""cgroup v1 writes a number near 2**63 when there is no limit."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes, and a count of processes. None is unknown."""

    limit: int | None
    peak: int | None
    """Highest use so far, including the page cache."""
    kills: int | None
    """Processes that the kernel killed because the limit was exceeded."""


def read(root: Path = CGROUP) -> HostMemory:
    """The current values."""
    v1 = root / "memory"
    return HostMemory(
        limit=_bounded(_number(root / "memory.max", v1 / "memory.limit_in_bytes")),
        peak=_number(root / "memory.peak", v1 / "memory.max_usage_in_bytes"),
        kills=_entry("oom_kill", root / "memory.events", v1 / "memory.oom_control"),
    )


def in_use(root: Path = CGROUP) -> int | None:
    """Bytes in use without the page cache that the kernel can reclaim: what `kubectl top` shows. None is unknown."""
    v1 = root / "memory"
    used = _number(root / "memory.current", v1 / "memory.usage_in_bytes")
    if used is None:
        return None
    cache = _entry("inactive_file", root / "memory.stat") or _entry("total_inactive_file", v1 / "memory.stat") or 0
    return max(0, used - cache)


def was_oom_killed(before: HostMemory, after: HostMemory) -> bool | None:
    """Whether the kernel killed a process of this container for memory between two reads. None is unknown: without a
    limit the count may belong to another group than ours, as on a laptop."""
    if after.limit is None or before.kills is None or after.kills is None:
        return None
    return after.kills > before.kills


def describe(memory: HostMemory) -> str:
    """Limit and peak as a part of a sentence; empty when neither is known."""
    limit = f"the container's limit is {gibibytes(memory.limit)}" if memory.limit is not None else ""
    peak = f"its peak was {gibibytes(memory.peak)}" if memory.peak is not None else ""
    return " and ".join(part for part in (limit, peak) if part)


def gibibytes(number: int) -> str:
    """2.5 GiB."""
    return f"{number / 2**30:.1f} GiB"


def _bounded(limit: int | None) -> int | None:
    return None if limit is None or limit >= NO_LIMIT else limit


def _number(*files: Path) -> int | None:
    """The number in the first file that has one; "max" is no number."""
    for file in files:
        try:
            return int(file.read_text())
        except (OSError, ValueError):
            continue
    return None


def _entry(name: str, *files: Path) -> int | None:
    """The number of the line ``name number`` in the first file that has such a line."""
    for file in files:
        try:
            entries = dict(line.split(maxsplit=1) for line in file.read_text().splitlines())
            return int(entries[name])
        except (OSError, ValueError, KeyError):
            continue
    return None
