"""Heartbeats of the ranks. `launcher.hang_detection` reads them and ends a run that hangs.

Each rank overwrites one line in a file of the handover directory: phase, step, monotonic time (all processes of a
machine share that clock), the duration of its last save, and its account. `launcher.worker` opens the file. Any code
below may then `beat`, and does so whenever it makes progress: this distinguishes a long evaluation from a hang. Without
an open file (tests, other commands) a beat writes nothing.

The time between two heartbeats is counted for what the first of them began (`uses`).
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Literal, get_args

from finetune_api.status import Use

from finetune_trainer.runtime.uses import Account

Phase = Literal["load", "train", "evaluate", "generate", "save", "finish"]
"""load: everything before the first step, and preparation. finish: reports and artifact, after the last step."""

_USES: dict[Phase, Use] = {
    "load": "load",
    "train": "train",
    "evaluate": "evaluate",
    "generate": "evaluate",
    "save": "save",
    "finish": "save",
}
_LINE = 512
"""Characters of the line: the account is the most of them."""


@dataclass(frozen=True)
class Beat:
    """One heartbeat."""

    phase: Phase
    step: int
    time: float
    save_seconds: float = 0.0
    """Duration of the last save, most of which runs in the background; 0 before the first save."""


class _Writer:
    """This process's file, and its last heartbeat."""

    handle: int | None = None
    last = Beat("load", 0, 0.0)
    use: Use = "load"
    """What the time since the last heartbeat counts for."""
    counted_step: int | None = None
    """The newest step whose end is counted. None before training."""
    account = Account()
    redo_until = 0
    """The newest step that earlier ranks have done: those up to it are done again."""
    lock = Lock()


def open_file(folder: Path, rank: int, account: Account | None = None) -> None:
    """From now on, `beat` writes this rank's file. ``account``: that of the run before this rank started."""
    _Writer.handle = os.open(_file(folder, rank), os.O_WRONLY | os.O_CREAT, 0o644)
    account = account or Account(until=time.monotonic())
    _Writer.account, _Writer.redo_until, _Writer.counted_step, _Writer.use = account, account.furthest, None, "load"
    beat("load")


def begin_training(step: int) -> None:
    """Training continues after this step."""
    with _Writer.lock:
        _Writer.counted_step = step


def account() -> Account:
    """What the run has spent its time on, up to this process's last heartbeat."""
    return _Writer.account


def beat(phase: Phase, step: int = 0, use: Use | None = None) -> None:
    """Record progress. Costs microseconds: one write of one line, never synced to disk. ``use``: what the time from now
    on counts for, if the phase does not say it."""
    with _Writer.lock:
        _write(replace(_Writer.last, phase=phase, step=step), use or _use(phase, step))


def use_of_step(step: int) -> Use:
    """What the time of the step after ``step`` counts for."""
    return "redone" if step < _Writer.redo_until else "train"


def _use(phase: Phase, step: int) -> Use:
    if phase == "generate" and _Writer.last.phase == "generate":
        return _Writer.use  # stage ppo generates to train
    return use_of_step(step) if phase == "train" else _USES[phase]


def refresh() -> None:
    """Repeat the last heartbeat with the time of now. Any thread may call this: only the main thread sets the phase."""
    with _Writer.lock:
        _write(_Writer.last)


def record_save(seconds: float) -> None:
    """Record the duration of a save, from its step until the checkpoint is in place."""
    with _Writer.lock:
        _write(replace(_Writer.last, save_seconds=seconds))


def _write(beat: Beat, use: Use | None = None) -> None:
    _Writer.last = beat = replace(beat, time=time.monotonic())
    if _Writer.handle is None:
        return
    account, counted = _Writer.account.spent(_Writer.use, beat.time), _Writer.counted_step
    if beat.phase == "train" and counted is not None and beat.step > counted:
        account, _Writer.counted_step = account.stepped(counted, beat.step), beat.step
    _Writer.account, _Writer.use = account, use or _Writer.use
    line = f"{beat.phase} {beat.step} {beat.time:.6f} {beat.save_seconds:.1f} {account.packed()}".ljust(_LINE - 1)
    os.pwrite(_Writer.handle, f"{line}\n".encode(), 0)


def last() -> Beat:
    """This process's last heartbeat."""
    return _Writer.last


def read(folder: Path, rank: int) -> Beat | None:
    """A rank's last heartbeat; None before its first."""
    try:
        text, step, at, saved = _file(folder, rank).read_text(encoding="ascii").split()[:4]
        return next(Beat(phase, int(step), float(at), float(saved)) for phase in get_args(Phase) if phase == text)
    except (OSError, ValueError, StopIteration):
        return None


def read_account(folder: Path, rank: int, before: Account) -> Account:
    """The account of a rank up to its last heartbeat. ``before``: what it was started with."""
    try:
        return before.unpacked(_file(folder, rank).read_text(encoding="ascii").split()[4])
    except (OSError, ValueError, IndexError):
        return before


def _file(folder: Path, rank: int) -> Path:
    return folder / f"beat-{rank}"
