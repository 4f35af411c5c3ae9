"""The output of a command: a line per step, with the time that the step took.

Called by cluster.py, binaries.py and the command line.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def step(title: str) -> Iterator[Callable[[str], None]]:
    """Print the title at once, because a step may take minutes. The yielded function adds details to the line."""
    details: list[str] = []
    began = time.monotonic()
    print(f"  {title:<32}", end="", flush=True)
    try:
        yield details.append
        print(f"{time.monotonic() - began:6.1f} s  {' '.join(filter(None, details))}".rstrip(), end="")
    finally:
        print(flush=True)
