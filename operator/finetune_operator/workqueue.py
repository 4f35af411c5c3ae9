"""A keyed work queue: one worker per key at a time, N keys at once, each key queued at most once.

Errors back off per key, exponentially and with jitter; a success resets that. A key added while it is being worked on
is worked on again afterwards. Time is the event loop's, so tests can make it fly.
"""

import asyncio
import heapq
import random
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

BACKOFF_FIRST = 0.5
BACKOFF_MAX = 60.0


class WorkQueue(Generic[K]):
    """See the module."""

    def __init__(self) -> None:
        self._ready: dict[K, float] = {}
        """Keys to work on, oldest first -> when they were added."""
        self._later: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        """The moment that counts for each key in _later; other entries of it are leftovers."""
        self._busy: dict[K, float] = {}
        self._again: set[K] = set()
        self._errors: dict[K, int] = {}
        self._tie = 0
        self._wake = asyncio.Event()

    def add(self, key: K) -> None:
        """Work on the key as soon as a worker is free."""
        self._due.pop(key, None)
        if key in self._busy:
            self._again.add(key)
        elif key not in self._ready:
            self._ready[key] = self._now()
            self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Work on the key then, or earlier if it is added before."""
        if key in self._ready or key in self._again:
            return
        due = self._now() + max(0.0, seconds)
        if due >= self._due.get(key, float("inf")):
            return
        self._due[key] = due
        self._tie += 1
        heapq.heappush(self._later, (due, self._tie, key))
        self._wake.set()

    async def get(self) -> K:
        """The next key; it is the caller's until `done`."""
        while True:
            self._move_due()
            if self._ready:
                key = next(iter(self._ready))
                del self._ready[key]
                self._busy[key] = self._now()
                return key
            self._wake.clear()
            timeout = self._later[0][0] - self._now() if self._later else None
            try:
                await asyncio.wait_for(self._wake.wait(), timeout)
            except TimeoutError:
                continue

    def done(self, key: K, *, failed: bool = False) -> None:
        """Give the key back. Failed: it comes again after its back-off."""
        del self._busy[key]
        again = key in self._again
        self._again.discard(key)
        if failed:
            count = self._errors[key] = self._errors.get(key, 0) + 1
            self.add_after(key, min(BACKOFF_MAX, BACKOFF_FIRST * 2 ** min(count - 1, 10)) * random.uniform(0.75, 1.25))
            return
        self._errors.pop(key, None)
        if again:
            self.add(key)

    def oldest_wait(self) -> float:
        """Seconds that the longest-waiting ready key, or the longest-busy one, has spent. 0 when there is none."""
        started = [*self._ready.values(), *self._busy.values()]
        return self._now() - min(started) if started else 0.0

    def _move_due(self) -> None:
        now = self._now()
        while self._later and self._later[0][0] <= now:
            due, _, key = heapq.heappop(self._later)
            if self._due.get(key) == due:
                self.add(key)
        # With several workers asleep, one wake-up must not be lost to a worker that found nothing.
        if self._ready:
            self._wake.set()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
