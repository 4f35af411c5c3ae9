"""The gate of all writes: it is open while this process holds a Lease that it has renewed a short time ago.

Age is counted from the moment at which the last successful renewal was requested, by a clock that no administrator can
set and that counts the time for which the machine was suspended. Others may take the Lease `LEASE_SECONDS` after they
have seen the renewal, so never before this process has stopped to write.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial

LEASE_SECONDS = 15
"""Others may take a Lease that was not renewed for so long."""
RENEW_SECONDS = 10
"""The holder of the Lease begins no write if its last renewal is older."""
RETRY_SECONDS = 2.0
"""Interval at which the holder renews the Lease, and at which others look at it."""

Clock = Callable[[], float]
monotonic: Clock = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""CLOCK_MONOTONIC stands still while a machine is suspended."""


class NotLeading(Exception):
    """This process may not write: it does not hold the Lease, or has not renewed it in time. Nothing was sent."""


class Gate:
    """Closed until the first renewal."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._renewed_at = -math.inf
        self._writes = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def renewed(self, requested_at: float) -> None:
        """The Lease was renewed by a request that was made then."""
        self._renewed_at = requested_at

    def close(self) -> None:
        """Until the next renewal. Writes that are under way continue."""
        self._renewed_at = -math.inf

    def age(self) -> float:
        """Seconds since the last renewal was requested."""
        return self._clock() - self._renewed_at

    def check(self) -> float:
        """How many seconds a write may take that begins now. Raises NotLeading."""
        age = self.age()
        if age >= RENEW_SECONDS:
            raise NotLeading("this process does not hold the Lease, or has not renewed it in time")
        return LEASE_SECONDS - age

    @contextlib.contextmanager
    def writing(self) -> Iterator[float]:
        """A write is under way inside; it may take so many seconds. Raises NotLeading."""
        seconds = self.check()
        self._writes += 1
        self._idle.clear()
        try:
            yield seconds
        finally:
            self._writes -= 1
            if not self._writes:
                self._idle.set()

    async def settled(self, seconds: float) -> bool:
        """Wait for the end of the writes that are under way, at most so long. Whether they have ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        return not self._writes
