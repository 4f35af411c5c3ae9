"""SIGTERM and SIGINT as flags: a handler that only records them, for the launcher and for every rank.

Imports the standard library alone, and is the first thing that ``__main__`` runs. For PID 1 the kernel drops a signal
without a handler, and the pod would then run until the end of its grace period.
"""

import signal
import time
from types import FrameType


class Stop:
    """Whether, when and how often this process received a signal to stop."""

    def __init__(self) -> None:
        self.count = 0
        self.at = float("inf")
        """Monotonic time of the first request."""
        self.interrupts = 0
        """How many of the requests were Ctrl-C. The second Ctrl-C stops without a save."""

    @property
    def requested(self) -> bool:
        return self.count > 0

    def listen(self, *signals: signal.Signals) -> "Stop":
        """Install the handler for these signals."""
        for number in signals:
            signal.signal(number, self._record)
        return self

    def _record(self, number: int, _frame: FrameType | None) -> None:
        if not self.requested:
            self.at = time.monotonic()
        self.count += 1
        self.interrupts += number == signal.SIGINT
