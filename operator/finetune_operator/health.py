"""/healthz: is the operator doing its work?

A live process is not enough: a watch can die silently, and a queue can hang. So it fails when something that is known
to be on the server has not come by a watch, or a job has been queued or in work, for too long.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web


class WatchLag:
    """Compares what must come by the watches with what does.

    What must come: every version that one of our own writes returned, and every version that a listing brought
    before the watch did.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._missing: dict[str, tuple[int, float]] = {}

    def expect(self, uid: str, resource_version: int) -> None:
        """The watch must show this version, or a newer one, of the object."""
        if self._seen.get(uid, -1) < resource_version:
            since = self._missing.get(uid, (0, asyncio.get_running_loop().time()))[1]
            self._missing[uid] = (resource_version, since)

    def seen(self, uid: str, resource_version: int) -> None:
        """The watch has shown it."""
        self._seen[uid] = max(resource_version, self._seen.get(uid, -1))
        if uid in self._missing and self._missing[uid][0] <= resource_version:
            del self._missing[uid]

    def gone(self, uid: str) -> None:
        """The object is deleted: nothing more will come."""
        self._seen.pop(uid, None)
        self._missing.pop(uid, None)

    def oldest(self) -> float:
        """Seconds that the longest-missing version has been missing."""
        now = asyncio.get_running_loop().time()
        return max((now - since for _, since in self._missing.values()), default=0.0)


async def serve(port: int, check: Callable[[], list[str]], ready: Callable[[], bool]) -> web.AppRunner:
    """Serve GET /healthz: 200 'ok', or 503 with what is wrong, a line each; and /readyz, which besides wants the first
    listing done. They are two because starting anew does not cure a missing CRD or right."""

    async def healthz(_: web.Request) -> web.Response:
        wrong = check()
        return web.Response(status=503 if wrong else 200, text="\n".join(wrong or ["ok"]) + "\n")

    async def readyz(request: web.Request) -> web.Response:
        if not ready():
            return web.Response(status=503, text="nothing could be listed yet: see the log\n")
        return await healthz(request)

    app = web.Application()
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/healthz", healthz)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", port).start()
    return runner
