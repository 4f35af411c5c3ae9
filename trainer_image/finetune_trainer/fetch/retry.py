"""Retries with backoff, for server errors that may go away by themselves.

Called by `hub`, `s3`, `download`, publishing and reward services. A pause ends early when the job has to stop.
"""

import math
import time
from collections.abc import Callable
from typing import TypeVar

from finetune_trainer.errors import SourceUnreachable

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts. There is one attempt more than pauses."""

Answer = TypeVar("Answer")


class TransientError(SourceUnreachable):
    """The connection broke, or the server is busy or failing. Another attempt may succeed."""


def with_retries(request: Callable[[], Answer], check_stop: Callable[[], None], until: float = math.inf) -> Answer:
    """The answer of ``request``, which is called again after each TransientError. No attempt begins after ``until``
    (`time.monotonic`). Raises the error of the last attempt."""
    for pause in PAUSES:
        try:
            return request()
        except TransientError:
            if time.monotonic() + pause >= until:
                raise
            wait(pause, check_stop)
    return request()


def wait(seconds: float, check_stop: Callable[[], None]) -> None:
    """Sleep, and call ``check_stop`` twice a second."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check_stop()
        time.sleep(min(left, 0.5))
    check_stop()
