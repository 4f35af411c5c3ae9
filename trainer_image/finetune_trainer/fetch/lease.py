"""Locks that outlive nobody: a lease has an owner and ends by itself unless it is renewed.

Called by ``store`` and by whoever makes an entry of the shared cache. File locks are left alone: on many network file
systems they do nothing, or stay when a node dies.

A lease ``name`` is a row of files ``name.1``, ``name.2``, …: the highest is who holds it. Whoever finds it run out
makes the next number with link(), which exactly one can do; nobody ever takes a file away from its owner, so no two can
believe that they took over the same one. The highest stays when it is given back, marked as run out.
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
from pathlib import Path
from uuid import uuid4

from finetune_trainer.errors import SourceUnreachable

LASTS = 60.0
RENEWED_EVERY = 10.0
LOOKS_EVERY = 1.0

log = logging.getLogger(__name__)


class LeaseLost(SourceUnreachable):
    """This process stood still for so long that another took over; another attempt finds what that one made."""


class Lease:
    """What the holder has. `check` raises LeaseLost: call it before each write that another must not see."""

    def __init__(self, file: Path, number: int, owner: str) -> None:
        self._file, self._number, self._owner = file, number, owner
        self._renewed = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {file.name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if time.monotonic() - self._renewed > LASTS:
            raise LeaseLost(f"The lock {self._file.name} of the workspace was not renewed for {LASTS:.0f} s")

    def _keep(self) -> None:
        while not self._ended.wait(RENEWED_EVERY):
            began = time.monotonic()
            try:
                self.check()
                _write(_numbered(self._file, self._number), self._owner, time.time() + LASTS)
                self._renewed = began
            except LeaseLost:
                return
            except OSError as error:
                log.warning("The lock %s could not be renewed: %s", self._file.name, error)

    def give_back(self) -> None:
        self._ended.set()
        self._thread.join()
        try:
            self.check()
            _write(_numbered(self._file, self._number), self._owner, 0)
        except (LeaseLost, OSError) as error:
            log.warning("The lock %s could not be given back: %s", self._file.name, error)


@contextmanager
def lease(file: Path, owner: str, check_stop: Callable[[], None]) -> Iterator[Lease]:
    """Hold ``file`` as ``owner``; wait while another does, calling ``check_stop`` meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        check_stop()
        number = max(_numbers(file), default=0)
        holder, expires = _read(_numbered(file, number)) if number else ("", 0.0)
        if expires <= time.time():
            if _make(file, number + 1, owner):
                break
        else:
            if not told:
                log.info("Waiting for run %s, which holds %s", holder, file.name)
                told = True
            time.sleep(LOOKS_EVERY)
    held = Lease(file, number + 1, owner)
    try:
        yield held
    finally:
        held.give_back()


def _make(file: Path, number: int, owner: str) -> bool:
    """Whether this number is ours now."""
    mine = _numbered(file, number)
    fresh = file.with_name(f".{file.name}.{uuid4().hex}")
    _write(fresh, owner, time.time() + LASTS)
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


def _write(file: Path, owner: str, expires: float) -> None:
    fresh = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        fresh.write_text(json.dumps({"owner": owner, "expires": expires}), encoding="utf-8")
        fresh.rename(file)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def _read(file: Path) -> tuple[str, float]:
    """Who and until when; one that can't be understood, or is just being cleared away, has run out."""
    try:
        content = json.loads(file.read_bytes())
        return str(content["owner"]), float(content["expires"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "", 0.0
