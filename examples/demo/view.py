"""The display of a running job: phase, why it waits, a progress bar, loss and ETA.

Called by both playbooks with the status of a job. On a terminal the display is redrawn in place. Elsewhere it prints a
line whenever something has changed, at most every few seconds.
"""

import shutil
import sys
import time
from typing import Any

BAR = 30
QUIET_SECONDS = 5.0


class View:
    """The display of a job, updated with each `show`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = time.monotonic()
        self.drawn = 0
        self.last: list[str] = []
        self.last_time = -QUIET_SECONDS

    def show(self, status: dict[str, Any], *, final: bool = False) -> None:
        """Display the current status of the job."""
        now = time.monotonic()
        lines = describe(self.name, status)
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            lines[0] += f"  {clock(now - self.began)}"
            up = f"\x1b[{self.drawn}F" if self.drawn else ""
            print(up + "\x1b[J" + "\n".join(line[:width] for line in lines), flush=True)
            self.drawn = len(lines)
        elif lines != self.last and (final or now - self.last_time >= QUIET_SECONDS):
            print(f"  {clock(now - self.began):>6}" + "".join(lines), flush=True)
            self.last, self.last_time = lines, now


def describe(name: str, status: dict[str, Any]) -> list[str]:
    """The job in one or two lines."""
    phase = status.get("phase") or "Pending"
    head = f"  {name}  {phase}"
    if status.get("attempt", 1) > 1:
        head += f"  attempt {status['attempt']}"
    progress = status.get("progress")
    if progress and progress.get("activity", "Training") != "Training":
        progress = None  # the last progress of preparing
    if phase == "Running" or (phase == "Succeeded" and progress):
        return [head, f"  {bar(progress)}" if progress else "  loading the model and the data"]
    if status.get("reason"):
        return [head, "  " + ": ".join(filter(None, [status["reason"], status.get("message")]))]
    return [head]


def bar(progress: dict[str, Any]) -> str:
    """A progress bar, and the numbers beside it."""
    full = round(BAR * progress["percent"] / 100)
    parts = ["█" * full + "░" * (BAR - full), f"step {progress['summary']}"]
    if progress.get("loss"):
        parts.append(f"loss {float(progress['loss']):.2f}")
    if progress.get("eta") and progress["percent"] < 100:
        parts.append(f"ETA {progress['eta']}")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Minutes and seconds, for example 1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
