"""Sends curves to one tracker, in a thread of its own, so that a tracker can neither slow nor fail a run.

Used by `callback`. After a few failed attempts it logs one warning and sends nothing more to this tracker.
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
"""Seconds between attempts."""
QUEUE_SIZE = 10_000
"""Log lines that may wait for a tracker."""

T = TypeVar("T")


class Refused(Exception):
    """The tracker refused a call, and would refuse it again."""


class Tracker(Protocol):
    """A client of a tracker. A call may take any time and raise anything."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, done: bool) -> None:
        """End the curves of this run. ``done``: no later run continues them."""


class Sender:
    """A queue and a thread for one tracker, which it opens at once."""

    def __init__(self, name: str, opener: Callable[[], Tracker], pauses: tuple[float, ...] | None = None) -> None:
        self._name, self._open, self._pauses = name, opener, PAUSES if pauses is None else pauses
        self._queue: Queue[tuple[int, Mapping[str, float]] | bool] = Queue(QUEUE_SIZE)
        self._ended = False
        self._thread = Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Returns at once."""
        if not self._ended:
            try:
                self._queue.put_nowait((step, values))
            except Full:
                self._give_up(f"it does not answer, and {QUEUE_SIZE} log lines wait for it")

    def close(self, done: bool, seconds: float) -> None:
        """Give the tracker ``seconds`` to take what waits for it."""
        if self._ended:
            return
        try:
            self._queue.put_nowait(done)
        except Full:
            seconds = 0.0
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._give_up(f"it did not take the last values within {seconds:g} s")

    def _work(self) -> None:
        try:
            tracker = self._with_retries(self._open)
            while not self._ended:
                item = self._queue.get()
                if isinstance(item, bool):
                    self._with_retries(partial(tracker.close, item))
                    return
                self._with_retries(partial(tracker.log, *item))
        except BaseException as error:  # some libraries raise SystemExit
            self._give_up(f"{type(error).__name__}: {error}"[:500])

    def _with_retries(self, call: Callable[[], T]) -> T:
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
            log.warning("%s gets no more curves of this run, which continues: %s", self._name, " ".join(why.split()))
