"""Where each rank stands, for `watch`, which ends a run that stands still.

Each rank overwrites one line in a file of the handover folder: phase, step, monotonic time (all processes of a machine
share that clock), and what its last save took. `worker` opens it; anything below may then `beat`, and does whenever it
gets somewhere: that is what tells a long evaluation from a hung one. Without an open file (tests, other commands) a
beat does nothing.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Literal, get_args

Phase = Literal["load", "train", "evaluate", "generate", "save", "finish"]
"""load: all before the first step, and preparing. finish: reports and artifact, after the last step."""

_LINE = 64


@dataclass(frozen=True)
class Beat:
    """One sign of life."""

    phase: Phase
    step: int
    time: float
    save_seconds: float = 0.0
    """What the last save took as a whole, most of it in the background; 0 before the first."""


class _Writer:
    """This process's file, and what was written last."""

    handle: int | None = None
    last = Beat("load", 0, 0.0)
    lock = Lock()


def open_file(folder: Path, rank: int) -> None:
    """From now on, `beat` writes this rank's file."""
    _Writer.handle = os.open(_file(folder, rank), os.O_WRONLY | os.O_CREAT, 0o644)
    beat("load")


def beat(phase: Phase, step: int = 0) -> None:
    """Say that this rank got somewhere. Costs microseconds: one write of one line, never synced to disk."""
    with _Writer.lock:
        _say(replace(_Writer.last, phase=phase, step=step))


def alive() -> None:
    """Say that this rank still gets on with what it said last. May be called by any thread: the phase is the main
    one's to say."""
    with _Writer.lock:
        _say(_Writer.last)


def saved(seconds: float) -> None:
    """Say how long a save took, from the step that it is of until it was in its place."""
    with _Writer.lock:
        _say(replace(_Writer.last, save_seconds=seconds))


def _say(beat: Beat) -> None:
    _Writer.last = beat = replace(beat, time=time.monotonic())
    if _Writer.handle is not None:
        line = f"{beat.phase} {beat.step} {beat.time:.6f} {beat.save_seconds:.1f}".ljust(_LINE - 1) + "\n"
        os.pwrite(_Writer.handle, line.encode(), 0)


def last() -> Beat:
    """What this process said last."""
    return _Writer.last


def read(folder: Path, rank: int) -> Beat | None:
    """What a rank said last; None before its first word."""
    try:
        phase, step, at, saved = _file(folder, rank).read_text(encoding="ascii").split()
        return next(Beat(known, int(step), float(at), float(saved)) for known in get_args(Phase) if known == phase)
    except (OSError, ValueError, StopIteration):
        return None


def _file(folder: Path, rank: int) -> Path:
    return folder / f"beat-{rank}"
