"""Patience with servers: what may go away by itself is tried again, with growing pauses.

Called by ``hub``, ``s3`` and ``store``. A pause ends early when the job is told to stop.
"""

import math
import time
from collections.abc import Callable
from typing import TypeVar

from finetune_trainer.errors import SourceUnreachable

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between tries; one try more than pauses."""

Answer = TypeVar("Answer")


class Unsteady(SourceUnreachable):
    """The network broke, or the server is busy or broken: worth another try."""


def patiently(ask: Callable[[], Answer], check_stop: Callable[[], None], until: float = math.inf) -> Answer:
    """The answer, after as many tries as it takes or are allowed; none begins once the clock (`time.monotonic`) is at
    ``until``. Raises what the last try raised."""
    for pause in PAUSES:
        try:
            return ask()
        except Unsteady:
            if time.monotonic() + pause >= until:
                raise
            wait(pause, check_stop)
    return ask()


def wait(seconds: float, check_stop: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check_stop()
        time.sleep(min(left, 0.5))
    check_stop()
