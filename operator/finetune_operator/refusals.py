"""Watches that the API server refuses: which right is missing, for /readyz and the log.

kopf tries a refused list or watch again, at pauses of at most 21 s, and says so nowhere but in its log. So a filter of
that log takes note of the refusals. A refusal counts from the second in a row: API servers refuse single requests while
they are upgraded. One that kopf does not repeat is over.
"""

import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

log = logging.getLogger(__name__)

KOPF_LOGGER = "kopf._cogs.clients.watching"
FORBIDDEN = 403
OVER_SECONDS = 45.0
"""A refusal that is not repeated for so long is over."""
Right = tuple[str, str, str]
"""Verb, resource, and namespace; the latter is empty for the whole cluster."""


@dataclass
class _Refusal:
    first: float
    last: float
    said: str
    """By the API server."""


@dataclass
class WatchRefusals:
    """See the module's docstring. It is a filter for `KOPF_LOGGER`."""

    known: Callable[[str], bool]
    """Whether the log says already that a namespace cannot be listed."""
    quiet: bool = False
    """Whether the log is to have nothing of what kopf says."""
    clock: Callable[[], float] = time.monotonic
    _refusals: dict[Right, _Refusal] = field(default_factory=dict)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line of kopf is logged. Refusals are logged once, in our words."""
        # kopf logs while it handles the error.
        error = sys.exc_info()[1]
        right = _right(record.getMessage()) if getattr(error, "status", None) == FORBIDDEN else None
        if right is None:
            return not self.quiet
        self._note(right, str(getattr(error, "message", None) or error))
        return False

    def lasting(self) -> list[str]:
        """The rights that are missing, one per line."""
        now = self.clock()
        self._refusals = {right: known for right, known in self._refusals.items() if now - known.last < OVER_SECONDS}
        return [
            _words(right, refusal.said)
            for right, refusal in self._refusals.items()
            if refusal.last > refusal.first and not self.known(right[2])
        ]

    def _note(self, right: Right, said: str) -> None:
        now = self.clock()
        before = self._refusals.get(right)
        if before is None or now - before.last >= OVER_SECONDS:
            self._refusals[right] = _Refusal(now, now, said)
            return
        if before.last == before.first and not self.known(right[2]):
            log.error("%s", _words(right, said))
        self._refusals[right] = _Refusal(before.first, now, said)


def _right(line: str) -> Right | None:
    """What the request of kopf's line needs: `… GET https://…/api/v1/namespaces/team/pods?watch=true -> …`."""
    found = re.search(r"GET (\S+)", line)
    if found is None:
        return None
    url = urlsplit(found[1])
    *before, resource = url.path.rstrip("/").split("/")
    namespace = before[-1] if before[-2:-1] == ["namespaces"] else ""
    return "watch" if parse_qs(url.query).get("watch") == ["true"] else "list", resource, namespace


def _words(right: Right, said: str) -> str:
    verb, resource, namespace = right
    where = f"in namespace {namespace}" if namespace else "in all namespaces"
    return f"The operator may not {verb} {resource} {where}, so it learns of changes late: {said}"
