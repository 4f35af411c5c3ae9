"""What a person sees while the cluster does something: one line per step, with the time it took.

Called by cluster.py, binaries.py and the command line.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def step(title: str) -> Iterator[Callable[[str], None]]:
    """The title is there from the start, for steps that take minutes; details are told through the given function."""
    details: list[str] = []
    began = time.monotonic()
    print(f"  {title:<32}", end="", flush=True)
    try:
        yield details.append
        print(f"{time.monotonic() - began:6.1f} s  {' '.join(filter(None, details))}".rstrip(), end="")
    finally:
        print(flush=True)
