"""Posts Events behind the work: no job waits until somebody's Event is stored.

What waits is bounded. An Event that cannot be posted is a line in the log, with all that it would have said.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable

from finetune_operator.cluster import ApiError, Cluster, NamespaceTerminatingError
from finetune_operator.gate import NotLeading
from finetune_operator.views.metadata import Raw

log = logging.getLogger(__name__)

LIMIT = 10_000
"""Events that wait at most: those of a burst of some thousand jobs."""
POSTERS = 2
"""Events that are posted at the same time. Most of the API server is left to the work itself."""
TRIES, PAUSE_SECONDS = 3, 1.0
"""An API server that is overloaded, or does not answer, is asked again."""


class Recorder:
    """See the module's docstring. `terminating` learns that a namespace is being deleted."""

    def __init__(self, cluster: Cluster, terminating: Callable[[str, ApiError], None]) -> None:
        self._cluster, self._terminating = cluster, terminating
        self._waiting: deque[Raw] = deque()
        self._posting = 0
        self._news, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()

    def add(self, event: Raw | None) -> None:
        """Post the event, if there is one, soon."""
        if event is None:
            return
        if len(self._waiting) >= LIMIT:
            _lost(event, f"{LIMIT} others wait")
            return
        self._waiting.append(event)
        self._idle.clear()
        self._news.set()

    async def run(self) -> None:
        """Until it is cancelled. An operator that no longer leads has no right to post what is left."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(POSTERS):
                    group.create_task(self._post_forever())
        finally:
            while self._waiting:
                _lost(self._waiting.popleft(), "this operator ends, or leads no longer")
            self._idle.set()

    async def posted(self, seconds: float) -> None:
        """Wait until none is left, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def _post_forever(self) -> None:
        while True:
            if not self._waiting:
                self._news.clear()
                await self._news.wait()
                continue
            event = self._waiting.popleft()
            self._posting += 1
            try:
                await self._post(event)
            except asyncio.CancelledError:
                _lost(event, "this operator ends, or leads no longer")
                raise
            finally:
                self._posting -= 1
                if not self._waiting and not self._posting:
                    self._idle.set()

    async def _post(self, event: Raw) -> None:
        """Its name is derived from what it tells, so an Event whose answer was lost is not posted twice."""
        for left in reversed(range(TRIES)):
            try:
                await self._cluster.create(event)
                return
            except NamespaceTerminatingError as error:
                self._terminating(event["metadata"]["namespace"], error)
                return
            except NotLeading as error:
                _lost(event, str(error))
                return
            except ApiError as error:
                if error.status == 409:
                    return
                if error.refused or not left:
                    _lost(event, str(error))
                    return
            await asyncio.sleep(PAUSE_SECONDS)


def _lost(event: Raw, why: str) -> None:
    about = event["involvedObject"]
    words = f"{about['namespace']}/{about['name']}: {event['reason']}: {event['message']}"
    log.warning("An Event cannot be posted (%s). It says: %s", why, words)
