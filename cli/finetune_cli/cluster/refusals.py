"""Refusals that may be wrong. An API server that has just started refuses users for some seconds, until it has read
the roles (403) or reached the identity provider (401). So a refusal of what was allowed before is not believed at once.
"""

import re
import time
from typing import Any

from finetune_cli.cluster.errors import described

DOUBT_SECONDS = 20.0
"""How long a doubtful refusal is asked about again."""
PAUSE_SECONDS = 1.0
STATUS = (401, 403)


class Refusals:
    """What one user was allowed to read. The threads of a command share it."""

    def __init__(self) -> None:
        self._allowed: set[str] = set()
        self._broke = -DOUBT_SECONDS

    def allowed(self, right: str) -> None:
        """The API server has just allowed this."""
        self._allowed.add(right)

    def broke(self) -> None:
        """A connection has ended, perhaps because the API server starts again."""
        self._broke = time.monotonic()

    def doubtful(self, right: str) -> bool:
        """Whether a refusal may be wrong: of what was allowed before, or of anything just after a connection ended."""
        lately = time.monotonic() - self._broke < DOUBT_SECONDS
        return right in self._allowed or (lately and bool(self._allowed))


def right(path: str, query: dict[str, Any]) -> str:
    """What a GET needs: verb, resource and namespace. Names of objects do not matter."""
    what = re.sub('"[^"]*"', "NAME", described(path))
    return f"{'watch' if query.get('watch') else 'read'} {what}"
