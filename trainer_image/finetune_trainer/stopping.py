"""SIGTERM and SIGINT, remembered: a handler that only takes note, for ``launch`` and for every rank.

Imports the standard library alone and is the first thing that ``__main__`` runs: for PID 1 the kernel drops a signal
that has no handler yet, and the pod would then sit out its whole grace period.
"""

import signal
import time
from types import FrameType


class Stop:
    """Whether, when and how often this process was asked to end."""

    def __init__(self) -> None:
        self.count = 0
        self.at = float("inf")
        """Monotonic time of the first request."""
        self.interrupts = 0
        """How many of them were Ctrl-C: the second one means now."""

    @property
    def requested(self) -> bool:
        return self.count > 0

    def listen(self, *signals: signal.Signals) -> "Stop":
        """Take note of these signals from now on."""
        for number in signals:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.requested:
            self.at = time.monotonic()
        self.count += 1
        self.interrupts += number == signal.SIGINT
