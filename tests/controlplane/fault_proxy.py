"""Between the operator and the API server: it counts the operator's calls and breaks the one it is told to.

The operator speaks plain HTTP to it on loopback; its token is passed on, so the server sees the same identity. What
breaks is chosen by number: the n-th changing call of a namespace (Events are not counted: they are best effort), so
many namespaces can have their own trouble at once. A proxy may also narrow an operator down to one namespace, so that
several operators share a cluster, and it can make watches lie: close, silence, or lose single events.

It runs in a thread of its own; its fields are plain values that tests set and read.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
from aiohttp import web
from yarl import URL

from tests.kube import Object, until

Kind = Literal["crash before", "crash after", "drop before", "drop after", "refuse", "delay"]
WATCHED = ("finetunejobs", "jobs", "pods")
PASSED_ON = ("Authorization", "Content-Type", "Accept", "User-Agent")


@dataclass(frozen=True)
class Fault:
    """What happens to the n-th changing call, from 1. `value`: the refusal's status, or the delay's seconds."""

    kind: Kind
    at: int
    value: float = 0

    def __str__(self) -> str:
        return f"{self.kind}{f' {self.value:g}' if self.value else ''} at call {self.at}"


@dataclass(frozen=True)
class Call:
    """A changing call, and what the API server said to it; 0: it did not get there."""

    method: str
    resource: str
    namespace: str
    name: str
    status: int
    body: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        return f"{self.method} {self.resource} {self.name}".strip()


class FaultProxy:
    """A context manager; `url` is where the operator finds it."""

    def __init__(self, server: str, ca: str, namespace: str = "") -> None:
        self.url = ""
        self.calls: list[Call] = []
        self.faults: dict[str, Fault] = {}
        """Per namespace."""
        self.listings = 0
        """Times that all FineTuneJobs were listed: by the first look at a start, and by each resync."""
        self.happened: dict[str, Call] = {}
        """The call that a namespace's fault hit."""
        self.crash: Callable[[], object] = lambda: None
        self.silent = False
        """Watches stay open and show nothing; new ones are not answered."""
        self.lose: Callable[[Object], bool] = lambda _event: False
        """Watch events that never come."""
        self._server, self._ca, self._namespace = server, ca, namespace
        self._counts: Counter[str] = Counter()
        self._watches: list[web.Request] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def arm(self, namespace: str, fault: Fault | None) -> None:
        """Count a namespace's calls anew, and break one of them."""
        self._counts[namespace] = 0
        self.happened.pop(namespace, None)
        self.calls = [call for call in self.calls if call.namespace != namespace]
        self.faults.pop(namespace, None)
        if fault is not None:
            self.faults[namespace] = fault

    def counted(self, namespace: str) -> list[Call]:
        """A namespace's changing calls since it was armed, without Events."""
        return [call for call in self.calls if call.namespace == namespace and call.resource != "events"]

    def effects(self, namespace: str) -> Counter[str]:
        """What was really created and deleted, per kind."""
        return Counter(
            f"{'delete' if call.method == 'DELETE' else 'create'} {call.resource}"
            for call in self.counted(namespace)
            if (call.method == "DELETE" and call.status < 300) or call.status == 201
        )

    def wait_for_listings(self, more: int) -> None:
        """Until the operator has looked at everything so many times more."""
        enough = self.listings + more
        until("the operator has looked at everything again", lambda: self.listings >= enough)

    @property
    def watches(self) -> int:
        """How many are open."""
        return len(self._watches)

    def cut_watches(self) -> None:
        """Close every watch, as a restarting API server does."""
        for request in list(self._watches):
            self._loop.call_soon_threadsafe(_cut, request)

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context(cadata=self._ca)),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        app = web.Application(client_max_size=8 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            return await self._watch(request)
        body = await request.read()
        if request.method == "GET":
            self.listings += request.path.endswith("v1alpha1/finetunejobs")
            return await self._forward(request, body)
        method, (namespace, resource, name) = request.method, _parsed(request.path)
        fault = None if resource == "events" else self._due(namespace)
        if fault is not None:
            self.happened[namespace] = Call(method, resource, namespace, name, 0)
            if fault.kind in ("crash before", "drop before"):
                return self._cut_off(request, fault)
            if fault.kind == "refuse":
                return _refusal(int(fault.value))
            if fault.kind == "delay":
                await asyncio.sleep(fault.value)
        answer = await self._forward(request, body)
        self.calls.append(Call(method, resource, namespace, name, answer.status, body))
        return self._cut_off(request, fault) if fault and fault.kind in ("crash after", "drop after") else answer

    def _due(self, namespace: str) -> Fault | None:
        self._counts[namespace] += 1
        fault = self.faults.get(namespace)
        return fault if fault is not None and fault.at == self._counts[namespace] else None

    def _cut_off(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.kind.startswith("crash"):
            self.crash()
        _cut(request)
        return web.Response(status=502, text="never arrives")

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        async with self._ask(request, body) as answer:
            content = await answer.read()
            return web.Response(status=answer.status, body=content, headers={"Content-Type": answer.content_type})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self._watches.append(request)
        try:
            while self.silent:
                await asyncio.sleep(0.05)
            async with self._ask(request, b"") as answer:
                stream = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
                await stream.prepare(request)
                rest = b""
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if not self.silent and not self.lose(json.loads(line)):
                            await stream.write(line + b"\n")
                return stream
        finally:
            self._watches.remove(request)

    def _ask(self, request: web.Request, body: bytes) -> Any:
        path = request.raw_path
        plural = request.path.rsplit("/", 1)[1]
        if self._namespace and plural in WATCHED and "/namespaces/" not in request.path:
            path = path.replace(f"/{plural}", f"/namespaces/{self._namespace}/{plural}", 1)
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        headers["Accept-Encoding"] = "identity"
        url = URL(self._server + path, encoded=True)
        return self._session.request(request.method, url, data=body or None, headers=headers)


def _parsed(path: str) -> tuple[str, str, str]:
    """(namespace, resource with its subresource, name)."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    return namespace, "/".join([parts[0], *parts[2:]]), parts[1] if len(parts) > 1 else ""


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _refusal(code: int) -> web.Response:
    said = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": f"refused with {code}"}
    return web.json_response(said, status=code, headers={"Retry-After": "1"} if code == 429 else {})
