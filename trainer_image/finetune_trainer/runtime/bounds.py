"""Bounds on the time and memory of work that files of strangers decide: chat templates and patterns of adapters.

The time is CPU time, so a machine that is busy with other things bounds nothing more tightly. Python's own code can be
interrupted anywhere; a single call of a library in C cannot, and the launcher's hang detection ends that.
"""

import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 20.0
"""CPU time of one piece of work. Ordinary work of this kind takes less than a millisecond."""
BYTES = 4 << 30
"""Memory that it may use in addition to what the process has."""
PAGE = resource.getpagesize()
DATA = 5
"""Place of the process's data in /proc/self/statm, in pages. The kernel holds this number against RLIMIT_DATA."""


class TooMuch(Exception):
    """The work takes too long, or too much memory."""


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Raises TooMuch, which names ``what``. Does nothing outside of the main thread, and inside another bound."""
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_VIRTUAL)[0]:
        yield
        return

    seconds, size = SECONDS, BYTES

    def stop(*_: object) -> None:
        raise TooMuch(f"{what} takes more than {seconds:g} s of CPU time")

    before, limits = signal.signal(signal.SIGVTALRM, stop), _lower_limit(size)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        yield
    except MemoryError:
        raise TooMuch(f"{what} needs more than {size >> 20} MiB of memory") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        if limits is not None:
            resource.setrlimit(resource.RLIMIT_DATA, limits)


def _lower_limit(size: int) -> tuple[int, int] | None:
    """Lower the limit to what is in use and ``size`` more; the limits before, or None if it cannot be lowered."""
    if sys.platform != "linux":
        return None
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[DATA]) * PAGE
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = used + size
    if soft != resource.RLIM_INFINITY and soft < wanted:
        return None
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    return soft, hard
