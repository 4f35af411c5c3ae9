"""Events that tell why pods do not start, where child job and pods do not say it themselves.

One reader serves all jobs. A job states the objects that it wants to know about. While any job of a namespace wants
something, the namespace's events are read once per interval, page by page, without those that explain nothing. All
namespaces together cost at most one page a second, however many jobs wait. News wake the jobs that they are about.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable

from finetune_api.job import KIND

from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.views.metadata import Key
from finetune_operator.views.pod import EventView, event_view
from finetune_operator.views.unreadable import UnreadableObjects

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 15.0
"""Shortest time between two reads of a namespace."""
PAUSE_SECONDS = 1.0
"""Between two pages, of whatever namespaces."""
EXPLAINING = ",".join(
    [
        f"involvedObject.kind!={KIND}",
        *(
            f"reason!={usual}"
            for usual in (
                "FailedScheduling",
                "Scheduled",
                "SuccessfulCreate",
                "SuccessfulDelete",
                "Completed",
                "Created",
                "Started",
                "Killing",
                "BackOff",
            )
        ),
    ]
)
"""Field selector. It leaves out what is frequent and tells nothing that pods do not tell themselves."""
PAGES_MAX = 10
"""Pages of one read. In a namespace with more events, some jobs wait without an explanation."""


class EventReader:
    """See the module's docstring."""

    def __init__(self, cluster: Cluster, unreadable: UnreadableObjects, wake: Callable[[Key], object]) -> None:
        self._cluster = cluster
        self._unreadable = unreadable
        self._wake = wake
        self._wanted: dict[Key, frozenset[str]] = {}
        self._known: dict[str, tuple[EventView, ...]] = {}
        """By the uid of the object that they are about."""
        self._due: dict[str, float] = {}
        """Namespaces with a job that wants something, or that were read less than an interval ago -> when to read."""
        self._more = asyncio.Event()

    def want(self, key: Key, uids: frozenset[str]) -> None:
        """The objects whose events the job needs from now on; none, if it needs none any more."""
        before = self._wanted.pop(key, frozenset())
        if uids:
            self._wanted[key] = uids
            if key[0] not in self._due:
                self._due[key[0]] = asyncio.get_running_loop().time()
                self._more.set()
        for uid in before - uids:
            self._known.pop(uid, None)

    def about(self, uids: Iterable[str]) -> tuple[EventView, ...]:
        """What is known."""
        return tuple(event for uid in uids for event in self._known.get(uid, ()))

    async def run(self) -> None:
        """Reads until it is cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            self._more.clear()
            namespace = min(self._due, key=lambda name: self._due[name], default=None)
            if namespace is None:
                await self._more.wait()
                continue
            if (seconds := self._due[namespace] - clock()) > 0:
                await _wait(self._more, seconds)
                continue
            del self._due[namespace]
            if any(key[0] == namespace for key in self._wanted):
                self._due[namespace] = clock() + INTERVAL_SECONDS
                await self._read(namespace)

    async def _read(self, namespace: str) -> None:
        wanted = {uid for key, uids in self._wanted.items() if key[0] == namespace for uid in uids}
        found: dict[str, list[EventView]] = defaultdict(list)
        try:
            async for page, _ in self._cluster.list_events(namespace, EXPLAINING, PAGES_MAX):
                for raw in page:
                    event = self._unreadable.read("Event", event_view, raw)
                    if event is not None and event.about in wanted:
                        found[event.about].append(event)
                await asyncio.sleep(PAUSE_SECONDS)
        except ApiError as error:
            log.warning("Cannot read the events of namespace %s. Trying again later: %s", namespace, error)
            return
        changed = {uid for uid in wanted if tuple(found[uid]) != self._known.get(uid, ())}
        for key, uids in self._wanted.items():
            for uid in uids & changed:
                self._known[uid] = tuple(found[uid])
            if uids & changed:
                self._wake(key)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event is set, or for so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
