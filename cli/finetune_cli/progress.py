"""Live progress: a bar per job, drawn in place on a terminal, and a line per change elsewhere."""

import shutil
import sys
import time
from datetime import datetime
from typing import Any

from finetune_cli import clock, jobs
from finetune_cli.output import phase as coloured

BAR = 24
REDRAW_SECONDS = 0.2
QUIET_SECONDS = 5.0


def line(job: dict[str, Any], at: datetime) -> str:
    """A job in one line."""
    status, phase = jobs.status(job), jobs.phase(job)
    progress = status.get("progress") or {}
    parts = [coloured(phase, 10)]
    if phase == "Preparing" and progress.get("kind") == "prepare":
        parts.append(progress["summary"])
    elif phase in ("Running", "Succeeded") and progress and progress.get("kind", "train") == "train":
        parts += _numbers(progress)
    elif phase != "Succeeded":
        parts.append(": ".join(part for part in (status.get("reason"), status.get("message")) if part))
    if status.get("attempt", 1) > 1:
        parts.append(f"attempt {status['attempt']}")
    if phase == "Running" and status.get("reason") not in (None, "", "Running"):
        parts.append(status["reason"])
    parts.append(clock.age(job, at))
    return "  ".join(part for part in parts if part)


def bar(percent: int, width: int = BAR) -> str:
    """A bar of blocks."""
    full = round(width * percent / 100)
    return "█" * full + "░" * (width - full)


def _numbers(progress: dict[str, Any]) -> list[str]:
    parts = [bar(progress["percent"]), progress["summary"]]
    if progress.get("loss"):
        parts.append(f"loss {progress['loss']}")
    if progress.get("tokensPerSecond"):
        parts.append(f"{progress['tokensPerSecond']} tokens/s")
    if progress.get("eta") and progress["percent"] < 100:
        parts.append(f"{progress['eta']} to go")
    return parts


class Display:
    """The jobs that are watched. `show` draws them again."""

    def __init__(self, single: bool = False) -> None:
        self.single = single
        self._live = sys.stdout.isatty()
        self._drawn = 0
        self._time = 0.0
        self._last: dict[str, tuple[str, float]] = {}

    def show(self, found: dict[str, dict[str, Any]], final: bool = False) -> None:
        """Draw all jobs on a terminal; elsewhere print those that changed."""
        at = clock.now()
        if self._live:
            self._redraw(found, at, final)
            return
        for uid, job in found.items():
            text, then = line(job, at).rpartition("  ")[0], time.monotonic()
            before, spoke = self._last.get(uid, ("", -QUIET_SECONDS))
            moved = before.partition(" ")[0] != text.partition(" ")[0] or then - spoke >= QUIET_SECONDS or final
            if text != before and moved:
                print(f"{at:%H:%M:%S}  {job['metadata']['name']}  {text}", flush=True)
                self._last[uid] = (text, then)

    def _redraw(self, found: dict[str, dict[str, Any]], at: datetime, final: bool) -> None:
        if not final and time.monotonic() - self._time < REDRAW_SECONDS:
            return
        size = shutil.get_terminal_size()
        width = max((len(job["metadata"]["name"]) for job in found.values()), default=0)
        rows = sorted(found.values(), key=lambda job: (jobs.phase(job) in jobs.FINAL, job["metadata"]["name"]))
        lines = [f"{job['metadata']['name']:{width}}  {line(job, at)}" for job in rows[: size.lines - 2]]
        if len(rows) > len(lines):
            lines.append(f"… and {len(rows) - len(lines)} more jobs")
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        print(up + "\x1b[J" + "\n".join(_cut(text, size.columns - 1) for text in lines), flush=True)
        self._drawn, self._time = len(lines), time.monotonic()


def _cut(text: str, width: int) -> str:
    """The text, as wide as the terminal: colours take no space."""
    out, seen, at = [], 0, 0
    while at < len(text):
        if text[at] == "\x1b":
            end = text.index("m", at) + 1
            out.append(text[at:end])
            at = end
            continue
        if seen < width:
            out.append(text[at])
        seen += 1
        at += 1
    return "".join(out)
