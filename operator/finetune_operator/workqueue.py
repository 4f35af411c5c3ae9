"""A keyed work queue: one worker per key at a time, N keys at once, each key queued at most once.

Errors back off per key, exponentially and with jitter; a success resets the backoff. A key that is added while a worker
has it is worked on again afterwards. Routine work, such as a resync, comes after all other work, but gets every fourth
turn: news are not late after a restart, and routine is never starved. Time is the event loop's.
"""

import asyncio
import contextlib
import heapq
import random
from collections.abc import Hashable, Set
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

BACKOFF_FIRST = 0.5
BACKOFF_MAX = 60.0
ROUTINE_TURN = 4
"""Every so many turns are for routine work, if there is any."""


class WorkQueue(Generic[K]):
    """See the module's docstring."""

    def __init__(self) -> None:
        self._ready: dict[K, float] = {}
        """Keys to work on, oldest first -> when they were added."""
        self._routine: dict[K, float] = {}
        """The same for keys of routine work. A key is in at most one of both."""
        self._turns = 0
        self._later: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        """The time at which each key in _later is due; older entries of the key in _later are ignored."""
        self._busy: dict[K, float] = {}
        self._again: set[K] = set()
        self._errors: dict[K, int] = {}
        self._taken = 0.0
        """When a worker last took a key."""
        self._tie = 0
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()
        """Set when a worker gives back a key."""

    def add(self, key: K, *, routine: bool = False) -> None:
        """Work on the key as soon as a worker is free; routine work after what is not."""
        self._due.pop(key, None)
        if key in self._busy:
            self._again.add(key)
        elif key not in self._ready and not (routine and key in self._routine):
            added = self._routine.pop(key, self._now())
            (self._routine if routine else self._ready)[key] = added
            self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Work on the key after so many seconds, or earlier if it is added before."""
        if key in self._ready or key in self._routine or key in self._again:
            return
        due = self._now() + max(0.0, seconds)
        if due >= self._due.get(key, float("inf")):
            return
        self._due[key] = due
        self._tie += 1
        heapq.heappush(self._later, (due, self._tie, key))
        self._wake.set()

    async def get(self) -> K:
        """The next key. It belongs to the caller until `done`."""
        while True:
            self._move_due()
            if self._ready or self._routine:
                self._turns += 1
                routine = self._routine and (not self._ready or self._turns % ROUTINE_TURN == 0)
                keys = self._routine if routine else self._ready
                key = next(iter(keys))
                del keys[key]
                self._busy[key] = self._taken = self._now()
                return key
            self._wake.clear()
            timeout = self._later[0][0] - self._now() if self._later else None
            # Not wait_for: before Python 3.12, it loses a cancellation that comes together with the wake-up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()

    def done(self, key: K, *, failed: bool = False) -> None:
        """Give the key back. If it failed, it comes again after its backoff."""
        del self._busy[key]
        self._progress.set()
        again = key in self._again
        self._again.discard(key)
        if failed:
            count = self._errors[key] = self._errors.get(key, 0) + 1
            self.add_after(key, min(BACKOFF_MAX, BACKOFF_FIRST * 2 ** min(count - 1, 10)) * random.uniform(0.75, 1.25))
            return
        self._errors.pop(key, None)
        if again:
            self.add(key)

    async def until_done(self, keys: Set[K]) -> None:
        """Return when none of the keys is ready, and no worker has one."""
        while any(not keys.isdisjoint(known) for known in (self._ready, self._routine, self._busy)):
            self._progress.clear()
            await self._progress.wait()

    def clear(self) -> None:
        """Forget all keys: workers are about to start, and their caller adds every key."""
        for keys in (self._ready, self._routine, self._due, self._errors):
            keys.clear()
        self._later.clear()
        self._taken = self._now()

    def depth(self) -> int:
        """How many keys are due and wait for a worker."""
        return len(self._ready) + len(self._routine)

    def standstill(self) -> float:
        """Seconds for which the slowest worker has had its key, or for which keys are ready and no worker took any. A
        long queue alone is no standstill."""
        now = self._now()
        runs = [now - since for since in self._busy.values()]
        idle = [now - max(self._taken, next(iter(keys.values()))) for keys in (self._ready, self._routine) if keys]
        return max([*runs, *idle], default=0.0)

    def _move_due(self) -> None:
        now = self._now()
        while self._later and self._later[0][0] <= now:
            due, _, key = heapq.heappop(self._later)
            if self._due.get(key) == due:
                self.add(key)
        # With several sleeping workers a wake-up must not be lost to a worker that got no key.
        if self._ready or self._routine:
            self._wake.set()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
