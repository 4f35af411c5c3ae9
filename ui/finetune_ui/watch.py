"""One watch for each token and namespace, shared by all pages that look at it, and closed with the last of them.

A thread reads the watch. A page is no queue of changes: it waits until something has changed and looks at the jobs as
they are then, so a page that is slow needs no memory.
"""

import asyncio
import http.client
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from finetune_cli import paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.cluster.errors import ApiError
from finetune_cli.problem import Exit, Problem

from finetune_ui.session import User

GONE = 410
PAUSE_SECONDS = 2.0
WATCH_SECONDS = 290
"""The server ends a watch after this time. The next begins with a list, so rights that were taken away are noticed."""


class Watched:
    """The jobs of a namespace as one user sees them."""

    def __init__(self, client: Client) -> None:
        self.jobs: dict[str, Object] = {}
        """uid -> job, without what no page shows."""
        self.ready = False
        self.failure: Problem | None = None
        self.viewers: set[asyncio.Event] = set()
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, name="watch", daemon=True).start()

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        self._client.interrupt()

    def _read(self) -> None:
        failure: Problem | None = None
        while not self._closed.is_set() and failure is None:
            try:
                self._once()
            except ApiError as error:
                if error.status in (401, 403, 404):
                    failure = error
                elif error.status != GONE:
                    self._closed.wait(PAUSE_SECONDS)
            except Problem as problem:
                if problem.code is not Exit.UNREACHABLE:
                    failure = problem
                self._closed.wait(PAUSE_SECONDS)
            except (OSError, http.client.HTTPException, ValueError):
                self._closed.wait(PAUSE_SECONDS)
        self._client.close()
        if failure is not None and not self._closed.is_set():
            self._tell(self._fail, failure)

    def _once(self) -> None:
        """List, then watch until the server or the connection ends it."""
        path, began = paths.jobs(self._client.namespace), time.monotonic()
        listed = self._client.get(path)
        self._tell(self._replace, {job["metadata"]["uid"]: slim(job) for job in listed.get("items") or ()})
        version = listed["metadata"]["resourceVersion"]
        query: dict[str, Any] = {"allowWatchBookmarks": "true", "timeoutSeconds": WATCH_SECONDS}
        while time.monotonic() - began < WATCH_SECONDS and not self._closed.is_set():
            for event in self._client.watch(path, resourceVersion=version, **query):
                if event["type"] == "ERROR":
                    return
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    self._tell(self._change, event["type"], slim(event["object"]))

    def _tell(self, work: Any, *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work, *arguments)

    def _replace(self, jobs: dict[str, Object]) -> None:
        self.jobs, self.ready = jobs, True
        self._wake()

    def _change(self, kind: str, job: Object) -> None:
        if kind == "DELETED":
            self.jobs.pop(job["metadata"]["uid"], None)
        else:
            self.jobs[job["metadata"]["uid"]] = job
        self._wake()

    def _fail(self, failure: Problem) -> None:
        self.failure = failure
        self._wake()

    def _wake(self) -> None:
        for viewer in self.viewers:
            viewer.set()


class Viewer:
    """A page that is open."""

    def __init__(self, watched: Watched, changed: asyncio.Event) -> None:
        self._watched, self._changed = watched, changed

    @property
    def jobs(self) -> dict[str, Object]:
        """uid -> job, as they are now."""
        return self._watched.jobs

    async def change(self) -> bool:
        """Wait until something has changed since the last call; the first call waits for the jobs. False: the watch has
        failed, so nothing will change any more."""
        await self._changed.wait()
        self._changed.clear()
        return self._watched.failure is None


class Hub:
    """All watches."""

    def __init__(self) -> None:
        self.watches: dict[tuple[str, str], Watched] = {}

    @asynccontextmanager
    async def viewer(self, user: User, namespace: str) -> AsyncIterator[Viewer]:
        """A viewer of the jobs of a namespace. The caller has checked that the user may list."""
        key = user.key, namespace
        watched = self.watches.get(key)
        if watched is None or watched.failure:
            watched = self.watches[key] = Watched(user.client(namespace))
            watched.start()
        changed = asyncio.Event()
        if watched.ready:
            changed.set()
        watched.viewers.add(changed)
        try:
            yield Viewer(watched, changed)
        finally:
            watched.viewers.discard(changed)
            if not watched.viewers:
                # Whatever happens to it, the next viewer has a watch that lives.
                if self.watches.get(key) is watched:
                    del self.watches[key]
                watched.close()

    def close(self) -> None:
        """End all watches."""
        for watched in self.watches.values():
            watched.close()


def slim(job: Object) -> Object:
    """The job without what no page shows and which is long: the resolved job, and who owns which field."""
    job["metadata"].pop("managedFields", None)
    ((job.get("status") or {}).get("resolved") or {}).pop("job", None)
    return job
