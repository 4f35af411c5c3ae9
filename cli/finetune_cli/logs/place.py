"""Where a reader is in a log, so that it continues after a broken connection without losing or doubling a line.

The kubelet sends the lines of a file whose time is not before ``sinceTime``, in the order of the file, and cuts that
time to whole seconds. So the reader counts lines by second: after it asks again for everything since second S, it skips
exactly as many lines as it has already had since S. Two streams of a container may write a little out of order, so S
lies one second before the latest line. This needs no memory that grows with the log.
"""

from datetime import datetime, timedelta

STAMP = len("2026-01-31T12:00:00")


class Place:
    """The place of one reader in the log of one container."""

    def __init__(self) -> None:
        self._first = ""
        self._latest = ""
        self._counts: dict[str, int] = {}
        self._known = 0
        """Lines still to come that were read before."""

    def reopen(self) -> str | None:
        """The sinceTime to ask for; None for the whole log. The lines that follow are those of a new connection."""
        if not self._latest:
            return None
        start = _second_before(self._latest)
        self._known = sum(count for second, count in self._counts.items() if second >= start[:STAMP])
        return start

    def is_new(self, stamp: str) -> bool:
        """Whether the next line, with this time, has not been read before."""
        if self._known:
            if stamp < self._first:  # it lies before the tail that was asked for
                return False
            if stamp <= self._latest:
                self._known -= 1
                return False
            self._known = 0  # the kubelet has begun a new file, and what was read lies in the old file
        self._first = self._first or stamp
        second = stamp[:STAMP]
        self._counts[second] = self._counts.get(second, 0) + 1
        if stamp > self._latest:
            if second != self._latest[:STAMP]:
                oldest = _second_before(stamp)[:STAMP]
                self._counts = {each: count for each, count in self._counts.items() if each >= oldest}
            self._latest = stamp
        return True


def _second_before(stamp: str) -> str:
    """One second before a time, in whole seconds and in the same zone. The fraction has nine digits or fewer."""
    zone = stamp[STAMP:].lstrip(".0123456789")
    before = datetime.fromisoformat(stamp[:STAMP]) - timedelta(seconds=1)
    return before.isoformat() + zone
