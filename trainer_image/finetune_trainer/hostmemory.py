"""What this container may use of the host's memory, and what it used, as the kernel counts it.

Called by `launch` before ranks start, by `watch` when they have ended, and by `reporting.status` while training. Reads
cgroup v2, else v1; outside of a container, or where the kernel is too old to tell, there is nothing to say.
"""

from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60
"""v1 says "no limit" by a number near 2**63."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes, each None where it isn't known."""

    limit: int | None
    peak: int | None
    """The most that was held at once, with the cache of files."""
    kills: int | None
    """Processes that the kernel ended for going over the limit."""


def read(root: Path = CGROUP) -> HostMemory:
    """As of now."""
    v1 = root / "memory"
    return HostMemory(
        limit=_bounded(_number(root / "memory.max", v1 / "memory.limit_in_bytes")),
        peak=_number(root / "memory.peak", v1 / "memory.max_usage_in_bytes"),
        kills=_entry("oom_kill", root / "memory.events", v1 / "memory.oom_control"),
    )


def in_use(root: Path = CGROUP) -> int | None:
    """Without the cache of files that the kernel would give back: what `kubectl top` shows."""
    v1 = root / "memory"
    used = _number(root / "memory.current", v1 / "memory.usage_in_bytes")
    if used is None:
        return None
    cache = _entry("inactive_file", root / "memory.stat") or _entry("total_inactive_file", v1 / "memory.stat") or 0
    return max(0, used - cache)


def was_short(before: HostMemory, after: HostMemory) -> bool | None:
    """Whether the kernel ended a process of this container in between, for want of memory. None where that isn't known:
    without a limit the count may be another group's than ours, as on a laptop."""
    if after.limit is None or before.kills is None or after.kills is None:
        return None
    return after.kills > before.kills


def describe(memory: HostMemory) -> str:
    """For people; empty where nothing is known."""
    limit = f"the container's limit is {gibibytes(memory.limit)}" if memory.limit is not None else ""
    peak = f"the most that it held was {gibibytes(memory.peak)}" if memory.peak is not None else ""
    return " and ".join(part for part in (limit, peak) if part)


def gibibytes(number: int) -> str:
    """2.5 GiB."""
    return f"{number / 2**30:.1f} GiB"


def _bounded(limit: int | None) -> int | None:
    return None if limit is None or limit >= NO_LIMIT else limit


def _number(*files: Path) -> int | None:
    """Of the first file that is there; "max" is no number."""
    for file in files:
        try:
            return int(file.read_text())
        except (OSError, ValueError):
            continue
    return None


def _entry(name: str, *files: Path) -> int | None:
    """A line ``name number`` of the first file that has it."""
    for file in files:
        try:
            entries = dict(line.split(maxsplit=1) for line in file.read_text().splitlines())
            return int(entries[name])
        except (OSError, ValueError, KeyError):
            continue
    return None
