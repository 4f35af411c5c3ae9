"""Calls to the API server: in threads, with the token of the user who asked, over connections that are used again.

There is no other way to the API server in this package, and no token but the user's.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from finetune_cli.cluster.client import Client, Object

from finetune_ui.session import User

T = TypeVar("T")
THREADS = 32
IDLE_SECONDS = 20.0
"""A connection that was idle for longer is opened again, because the server may have closed it."""
KEPT = 200
"""Idle connections that are kept, of all users together."""


class Kube:
    """Lends clients to threads."""

    def __init__(self) -> None:
        self._idle: list[tuple[float, str, Client]] = []
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "api")

    async def call(self, user: User, namespace: str, work: Callable[..., T], *arguments: Any) -> T:
        """`work(client, *arguments)` in a thread. Raises what it raises: ApiError, Problem."""

        def run() -> T:
            with self._lent(user, namespace) as client:
                return work(client, *arguments)

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    async def get(self, user: User, path: str, **query: Any) -> Object:
        """GET as this user."""
        return await self.call(user, "", lambda client: client.get(path, **query))

    def close(self) -> None:
        """Close all idle connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for _, _, client in self._idle:
                client.close()
            self._idle.clear()

    @contextmanager
    def _lent(self, user: User, namespace: str) -> Iterator[Client]:
        # A page shows at once what is refused: a thread that asks again would be missing for others.
        client = self._taken(user.key) or user.client(patient=False)
        client.namespace = namespace
        try:
            yield client
        except BaseException:
            client.close()
            raise
        with self._lock:
            self._idle.append((time.monotonic(), user.key, client))

    def _taken(self, key: str) -> Client | None:
        """An idle client of this user. Clients that were idle for long, or are too many, are closed."""
        oldest = time.monotonic() - IDLE_SECONDS
        found = None
        with self._lock:
            kept: list[tuple[float, str, Client]] = []
            for entry in reversed(self._idle):
                if entry[0] < oldest or len(kept) >= KEPT:
                    entry[2].close()
                elif found is None and entry[1] == key:
                    found = entry[2]
                else:
                    kept.append(entry)
            self._idle = kept[::-1]
        return found
