"""Locks that outlive nobody: a lease has an owner and ends by itself unless it is renewed.

Called by ``store`` and by whoever makes an entry of the shared cache. File locks are left alone: on many network file
systems they do nothing, or stay when a node dies.

A lease ``name`` is a row of files ``name.1``, ``name.2``, …: the highest is who holds it. Whoever finds it run out
makes the next number with link(), which exactly one can do; nobody ever takes a file away from its owner, so no two can
believe that they took over the same one. The highest stays when it is given back, empty, which is run out.

Nobody waits for the dead: a process of this machine that is gone holds nothing, nor does an earlier attempt of the same
job, as the operator starts the next one when no pod of it is left. A pod that comes back from a lost node all the same
sees the higher number when it renews, and ends.
Clocks of nodes may differ by less than `LASTS` - `RENEWED_EVERY`.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from finetune_trainer.errors import SourceUnreachable

LASTS = 60.0
RENEWED_EVERY = 10.0
LOOKS_EVERY = 1.0

Attempt = tuple[str, int] | None
"""(job, number); a higher number knows that lower ones are gone."""

log = logging.getLogger(__name__)


class LeaseLost(SourceUnreachable):
    """This process stood still for so long that another took over; another attempt finds what that one made."""


class Lease:
    """What the holder has. `check` raises LeaseLost: call it before each write that another must not see."""

    def __init__(self, file: Path, number: int, owner: str, attempt: Attempt) -> None:
        self._file, self._number, self._owner, self._attempt = file, number, owner, attempt
        self._renewed = time.monotonic()
        self._taken = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {file.name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._taken:
            raise LeaseLost(f"The lock {self._file.name} of the workspace was taken over by a later attempt")
        if time.monotonic() - self._renewed > LASTS:
            raise LeaseLost(f"The lock {self._file.name} of the workspace was not renewed for {LASTS:.0f} s")

    def _keep(self) -> None:
        while not self._ended.wait(RENEWED_EVERY):
            began = time.monotonic()
            try:
                self._taken = max(_numbers(self._file), default=0) > self._number
                self.check()
                _write(_numbered(self._file, self._number), self._owner, time.time() + LASTS, self._attempt)
                self._renewed = began
            except LeaseLost:
                return
            except OSError as error:
                log.warning("The lock %s could not be renewed: %s", self._file.name, error)

    def give_back(self) -> None:
        """Empty the file, which reads as run out and is possible on a full disk, too."""
        self._ended.set()
        self._thread.join()
        try:
            self.check()
            os.truncate(_numbered(self._file, self._number), 0)
        except (LeaseLost, OSError) as error:
            log.warning("The lock %s could not be given back: %s", self._file.name, error)


@contextmanager
def lease(file: Path, owner: str, check_stop: Callable[[], None], attempt: Attempt = None) -> Iterator[Lease]:
    """Hold ``file`` as ``owner``, for this attempt; wait while another does, calling ``check_stop`` meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        check_stop()
        number = max(_numbers(file), default=0)
        holder = _read(_numbered(file, number)) if number else NOBODY
        if holder.expires <= time.time() or _gone(holder, attempt):
            if _make(file, number + 1, owner, attempt):
                break
        else:
            if not told:
                log.info("Waiting for run %s, which holds %s", holder.owner, file.name)
                told = True
            time.sleep(LOOKS_EVERY)
    held = Lease(file, number + 1, owner, attempt)
    try:
        yield held
    finally:
        held.give_back()


def _make(file: Path, number: int, owner: str, attempt: Attempt) -> bool:
    """Whether this number is ours now."""
    mine = _numbered(file, number)
    fresh = file.with_name(f".{file.name}.{uuid4().hex}")
    _write(fresh, owner, time.time() + LASTS, attempt)
    try:
        os.link(fresh, mine)
    except FileExistsError:
        # The answer of a network file system may have got lost after the link was made.
        if fresh.stat().st_nlink < 2:
            return False
    finally:
        fresh.unlink(missing_ok=True)
    numbers = _numbers(file)
    if max(numbers) > number:  # our look at the folder was old, and this number had come and gone
        mine.unlink(missing_ok=True)
        return False
    for old in numbers:
        if old < number:
            _numbered(file, old).unlink(missing_ok=True)
    return True


def _numbered(file: Path, number: int) -> Path:
    return file.with_name(f"{file.name}.{number}")


def _numbers(file: Path) -> list[int]:
    ends = (path.name.removeprefix(f"{file.name}.") for path in file.parent.glob(f"{file.name}.*"))
    return [int(end) for end in ends if end.isdecimal()]


def _write(file: Path, owner: str, expires: float, attempt: Attempt) -> None:
    fresh = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        content = {"owner": owner, "expires": expires, "attempt": attempt, "process": _process(os.getpid())}
        fresh.write_text(json.dumps(content), encoding="utf-8")
        fresh.rename(file)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


@dataclass(frozen=True)
class Holder:
    """What the file of a lease says."""

    owner: str
    expires: float
    attempt: Attempt
    process: list[str | int] | None


def _read(file: Path) -> Holder:
    """One that can't be understood, or is just being cleared away, has run out."""
    try:
        content = json.loads(file.read_bytes())
        told = content.get("attempt")
        attempt = (str(told[0]), int(told[1])) if told else None
        return Holder(str(content["owner"]), float(content["expires"]), attempt, content.get("process"))
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return NOBODY


NOBODY = Holder("", 0.0, None, None)


def _gone(holder: Holder, attempt: Attempt) -> bool:
    """Whether the holder is known to be dead, however fresh its lease is."""
    if holder.attempt and attempt and holder.attempt[0] == attempt[0] and holder.attempt[1] < attempt[1]:
        return True
    here = _process(os.getpid())
    if not holder.process or not here or holder.process[:2] != here[:2]:
        return False  # of another machine or container: nobody here can tell
    return _process(int(holder.process[2])) != holder.process


def _process(pid: int) -> list[str | int] | None:
    """What tells a process from all others: boot of the machine, space of process ids, id, time of its start. None for
    one that is dead, or where this can't be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
        state, *facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else [boot, space, pid, facts[18]]
