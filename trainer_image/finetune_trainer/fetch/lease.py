"""Leases: locks that have an owner and expire unless the owner renews them.

Called by `source_cache`, and by preparation when it builds an entry of the shared cache. File locks are not used: on
many network file systems they do nothing, or remain when a node dies.

A lease ``name`` is a series of files ``name.1``, ``name.2``, …: the file with the highest number belongs to the holder.
A process that sees an expired lease creates the next number with link(), which succeeds for exactly one process. No
process removes the file of a living holder, so no two processes can believe that they hold the lease. A released lease
keeps its highest file, emptied, which reads as expired.

A process does not wait for dead holders. A process of this machine that has ended holds nothing. Neither does an
earlier attempt of the same job, because the operator starts an attempt only after all pods of earlier attempts are
gone. A pod that returns from a lost node sees the higher number when it renews, and ends.
The clocks of nodes may differ by less than `DURATION` - `RENEWAL_INTERVAL`.
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

DURATION = 60.0
"""Seconds until a lease expires that is not renewed."""
RENEWAL_INTERVAL = 10.0
"""Seconds between renewals."""
POLL_INTERVAL = 1.0
"""Seconds between checks of a process that waits."""

Attempt = tuple[str, int] | None
"""(job, number). All pods of attempts with lower numbers are gone."""

log = logging.getLogger(__name__)


class LeaseLost(SourceUnreachable):
    """This process was stopped for so long that another took the lease over. The next attempt uses its result."""


class Lease:
    """A held lease. Call `check` before each write that no other process may see: it raises LeaseLost."""

    def __init__(self, file: Path, number: int, owner: str, attempt: Attempt) -> None:
        self._file, self._number, self._owner, self._attempt = file, number, owner, attempt
        self._renewed = time.monotonic()
        self._taken_over = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_released, name=f"lease {file.name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._taken_over:
            raise LeaseLost(f"The lock {self._file.name} of the workspace was taken over by a later attempt")
        if time.monotonic() - self._renewed > DURATION:
            raise LeaseLost(f"The lock {self._file.name} of the workspace was not renewed for {DURATION:.0f} s")

    def _renew_until_released(self) -> None:
        while not self._ended.wait(RENEWAL_INTERVAL):
            began = time.monotonic()
            try:
                self._taken_over = max(_numbers(self._file), default=0) > self._number
                self.check()
                _write(_numbered(self._file, self._number), self._owner, time.time() + DURATION, self._attempt)
                self._renewed = began
            except LeaseLost:
                return
            except OSError as error:
                log.warning("The lock %s was not renewed: %s", self._file.name, error)

    def release(self) -> None:
        """Empty the file: it then reads as expired. This works on a full disk too."""
        self._ended.set()
        self._thread.join()
        try:
            self.check()
            os.truncate(_numbered(self._file, self._number), 0)
        except (LeaseLost, OSError) as error:
            log.warning("The lock %s was not released: %s", self._file.name, error)


@contextmanager
def lease(file: Path, owner: str, check_stop: Callable[[], None], attempt: Attempt = None) -> Iterator[Lease]:
    """Hold the lease ``file`` as ``owner``, for this attempt. While another process holds it, wait and call
    ``check_stop``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    logged = False
    while True:
        check_stop()
        number = max(_numbers(file), default=0)
        holder = _read(_numbered(file, number)) if number else NOBODY
        if holder.expires <= time.time() or _is_dead(holder, attempt):
            if _create(file, number + 1, owner, attempt):
                break
        else:
            if not logged:
                log.info("Waiting for run %s, which holds %s", holder.owner, file.name)
                logged = True
            time.sleep(POLL_INTERVAL)
    held = Lease(file, number + 1, owner, attempt)
    try:
        yield held
    finally:
        held.release()


def _create(file: Path, number: int, owner: str, attempt: Attempt) -> bool:
    """Create the file of this number. Returns whether it is ours now."""
    own = _numbered(file, number)
    fresh = file.with_name(f".{file.name}.{uuid4().hex}")
    _write(fresh, owner, time.time() + DURATION, attempt)
    try:
        os.link(fresh, own)
    except FileExistsError:
        # A network file system may have made the link and lost the answer.
        if fresh.stat().st_nlink < 2:
            return False
    finally:
        fresh.unlink(missing_ok=True)
    numbers = _numbers(file)
    if max(numbers) > number:  # our directory listing was stale: this number had been created and removed
        own.unlink(missing_ok=True)
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
    """The content of a lease's file."""

    owner: str
    expires: float
    attempt: Attempt
    process: list[str | int] | None


def _read(file: Path) -> Holder:
    """A file that is unreadable, or that another process is removing, counts as expired."""
    try:
        content = json.loads(file.read_bytes())
        pair = content.get("attempt")
        attempt = (str(pair[0]), int(pair[1])) if pair else None
        return Holder(str(content["owner"]), float(content["expires"]), attempt, content.get("process"))
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return NOBODY


NOBODY = Holder("", 0.0, None, None)


def _is_dead(holder: Holder, attempt: Attempt) -> bool:
    """Whether the holder is known to be dead, even if its lease has not expired."""
    if holder.attempt and attempt and holder.attempt[0] == attempt[0] and holder.attempt[1] < attempt[1]:
        return True
    here = _process(os.getpid())
    if not holder.process or not here or holder.process[:2] != here[:2]:
        return False  # on another machine or in another container: its state is unknown here
    return _process(int(holder.process[2])) != holder.process


def _process(pid: int) -> list[str | int] | None:
    """What identifies a process: boot id of the machine, namespace of process ids, process id, start time. None for a
    dead process, and on systems without this information."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else [boot, namespace, pid, fields[18]]
