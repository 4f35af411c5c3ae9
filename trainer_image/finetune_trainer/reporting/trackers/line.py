"""The line to one tracker: a thread of its own, so that nothing a tracker does can slow, stop or fail a run.

Used by `callback`. Whatever goes wrong is tried again a few times, then told in one warning, and the tracker gets
nothing more.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from queue import Full, Queue
from threading import Thread
from typing import Protocol, TypeVar

log = logging.getLogger(__name__)

PAUSES = (1.0, 5.0, 30.0)
"""Seconds between two tries."""
WAITING = 10_000
"""Lines of the log that may wait for a tracker."""

T = TypeVar("T")


class Refused(Exception):
    """The tracker said no, and would again."""


class Tracker(Protocol):
    """What is known of one tracker. Each call may take as long as it likes and raise what it likes."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, done: bool) -> None:
        """No more comes from this run. ``done``: nor from a later one."""


class Line:
    """Begins to open the tracker at once."""

    def __init__(self, name: str, opened: Callable[[], Tracker], pauses: tuple[float, ...] | None = None) -> None:
        self._name, self._open, self._pauses = name, opened, PAUSES if pauses is None else pauses
        self._waiting: Queue[tuple[int, Mapping[str, float]] | bool] = Queue(WAITING)
        self._ended = False
        self._thread = Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Returns at once."""
        if not self._ended:
            try:
                self._waiting.put_nowait((step, values))
            except Full:
                self._give_up(f"it does not answer, and {WAITING} lines wait for it")

    def close(self, done: bool, seconds: float) -> None:
        """Give the tracker so long to take what waits for it."""
        if self._ended:
            return
        try:
            self._waiting.put_nowait(done)
        except Full:
            seconds = 0.0
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._give_up(f"it took longer than {seconds:g} s to take the last of it")

    def _work(self) -> None:
        try:
            tracker = self._tried(self._open)
            while not self._ended:
                item = self._waiting.get()
                if isinstance(item, bool):
                    self._tried(partial(tracker.close, item))
                    return
                self._tried(partial(tracker.log, *item))
        except BaseException as error:  # libraries exit, too
            self._give_up(f"{type(error).__name__}: {error}"[:500])

    def _tried(self, call: Callable[[], T]) -> T:
        for pause in self._pauses:
            try:
                return call()
            except Refused:
                raise
            except Exception:
                time.sleep(pause)
        return call()

    def _give_up(self, why: str) -> None:
        if not self._ended:
            self._ended = True
            log.warning("%s gets no more curves of this run, which goes on: %s", self._name, " ".join(why.split()))
