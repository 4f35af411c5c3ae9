"""/healthz: whether the operator works; /readyz: whether it can; /metrics.

A live process is not enough: a watch can die silently, and a worker can hang. So /healthz fails if a watch has not
shown a version that is known to be on the server, or a worker does not finish or does not begin, for too long. A slow
API server is no reason: a restart would only give it more to do.
"""

import asyncio
import errno
import socket
from collections.abc import Callable

from aiohttp import web

from finetune_operator.exposition import CONTENT_TYPES, accepts_open_metrics
from finetune_operator.metrics import Metrics


class WatchLag:
    """Compares the versions that the watches must show with those that they have shown.

    They must show every version that a write of the operator returned, and every version in a listing.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._missing: dict[str, tuple[int, float]] = {}

    def expect(self, uid: str, resource_version: int) -> None:
        """The watch must show this version, or a newer version, of the object."""
        if self._seen.get(uid, -1) < resource_version:
            since = self._missing.get(uid, (0, asyncio.get_running_loop().time()))[1]
            self._missing[uid] = (resource_version, since)

    def seen(self, uid: str, resource_version: int) -> None:
        """The watch has shown this version."""
        self._seen[uid] = max(resource_version, self._seen.get(uid, -1))
        if uid in self._missing and self._missing[uid][0] <= resource_version:
            del self._missing[uid]

    def gone(self, uid: str) -> None:
        """The object is deleted: the watch will show no more of it."""
        self._seen.pop(uid, None)
        self._missing.pop(uid, None)

    def begin(self) -> None:
        """The watches are opened now, and owe nothing since earlier."""
        now = asyncio.get_running_loop().time()
        self._missing = {uid: (version, now) for uid, (version, _) in self._missing.items()}

    def oldest(self) -> float:
        """Seconds for which the longest-missing version has been missing."""
        now = asyncio.get_running_loop().time()
        return max((now - since for _, since in self._missing.values()), default=0.0)


Check = Callable[[], list[str]]
"""The problems at the moment, one per line; otherwise empty."""


async def serve(port: int, alive: Check, ready: Check, metrics: Metrics) -> web.AppRunner:
    """Serve GET /healthz and /readyz: 200 'ok', or 503 with one problem a line; and /metrics. Health and readiness are
    separate because a restart does not cure a missing CRD, a missing right or an overloaded API server."""

    def answer(problems: list[str]) -> web.Response:
        return web.Response(status=503 if problems else 200, text="\n".join(problems or ["ok"]) + "\n")

    async def healthz(_: web.Request) -> web.Response:
        return answer(alive())

    async def readyz(_: web.Request) -> web.Response:
        return answer([*alive(), *ready()])

    async def show_metrics(request: web.Request) -> web.Response:
        open_metrics = accepts_open_metrics(request.headers.get("Accept", ""))
        body = metrics.render(open_metrics=open_metrics).encode()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPES[open_metrics]})

    app = web.Application()
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/metrics", show_metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listen(port)).start()
    return runner


def listen(port: int) -> socket.socket:
    """A socket for IPv6 and IPv4 on all addresses; for IPv4 alone on a node without IPv6."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            # A kernel may know IPv6, but have no address of it.
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    return socket.create_server(("0.0.0.0", port))
