"""Between the operator and the API server: it counts the operator's calls and breaks a chosen call.

The operator speaks plain HTTP to it on loopback; its token is passed on, so the server sees the same identity. What
breaks is chosen by number: the n-th changing call of a namespace, so many namespaces can have their own trouble at
once. Events are not counted: they are best effort. Leases have a namespace of their own. A proxy may also narrow an
operator down to one namespace, so that several operators share a cluster, and it can make watches lie: close, silence,
or lose single events.

It runs in a thread of its own; its fields are plain values that tests set and read.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
from aiohttp import web
from yarl import URL

from tests.kube import Object, until

Kind = Literal[
    "crash before", "crash after", "drop before", "drop after", "silence before", "silence after", "refuse", "delay"
]
WATCHED = ("finetunejobs", "jobs", "pods", "configmaps")
VERBS = {"GET": "get", "PUT": "update", "POST": "create", "PATCH": "patch", "DELETE": "delete"}
SILENCE_SECONDS = 60.0
"""Longer than any timeout of the operator."""
PASSED_ON = ("Authorization", "Content-Type", "Accept", "User-Agent")


@dataclass(frozen=True)
class Fault:
    """What happens to the n-th changing call, from 1. `value`: the refusal's status, or the delay's seconds. A 422
    waits for a call that is no POST: the refusal of a child fails the job, as it should."""

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
    at: float = field(default=0, compare=False)
    """When it was answered, by the monotonic clock."""

    def __str__(self) -> str:
        return f"{self.method} {self.resource} {self.name}".strip()


class FaultProxy:
    """A context manager; `url` is where the operator finds it."""

    def __init__(self, server: str, ca: str, namespace: str = "") -> None:
        self.url = ""
        self.calls: list[Call] = []
        """Changing calls, except those to Leases."""
        self.elections: list[Call] = []
        """Changing calls to Leases."""
        self.requests: dict[str, Counter[str]] = {}
        """Every request, reads too: per namespace (empty: of all namespaces) the times of each verb and resource, as
        'list pods'."""
        self.faults: dict[str, Fault] = {}
        """Per namespace."""
        self.listings = 0
        """Times that all FineTuneJobs were listed: by the first look at a start, and by each resync."""
        self.happened: dict[str, Call] = {}
        """The call that a namespace's fault hit."""
        self.crash: Callable[[], object] = lambda: None
        self.silent = False
        """Watches stay open and show nothing; new watches are not answered."""
        self.refuse: Callable[[str, str, str], int] = lambda _method, _namespace, _resource: 0
        """The status with which a call is refused as long as this says so; 0: the call passes. Watches always pass."""
        self.rights: set[tuple[str, str]] = set()
        """Every (verb, resource) that a request needed, in the words of RBAC."""
        self.lose: Callable[[Object], bool] = lambda _event: False
        """Watch events that never come."""
        self._server, self._ca, self._namespace = server, ca, namespace
        self._counts: Counter[str] = Counter()
        self._watches: list[web.Request] = []
        self._expired: list[web.Request] = []
        self.stale: dict[str, bytes] | None = None
        """Listings by path, as they were noted first. While this is set, the operator gets these again and again, as
        from a cache that is behind; None: listings are true."""
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
        """Count a namespace's calls from zero, and break one of them."""
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

    def expire_watches(self) -> None:
        """Tell every watch that its version is too old (410 Gone), as after a compaction of etcd."""
        self._expired = list(self._watches)

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
        self._note(request)
        if request.query.get("watch"):
            return await self._watch(request)
        body = await request.read()
        method, (namespace, resource, name) = request.method, _parsed(request.path)
        if status := self.refuse(method, namespace, resource):
            return _refusal(status)
        if method == "GET":
            self.listings += request.path.endswith("v1alpha1/finetunejobs") and not _selects(request)
            return await self._read(request, body, listing=not name)
        fault = None if resource == "events" else self._due(method, namespace)
        if fault is not None:
            self.happened[namespace] = Call(method, resource, namespace, name, 0)
            if fault.kind in ("crash before", "drop before"):
                return self._cut_off(request, fault)
            if fault.kind == "silence before":
                await asyncio.sleep(SILENCE_SECONDS)
                return self._cut_off(request, fault)
            if fault.kind == "refuse":
                return _refusal(int(fault.value))
            if fault.kind == "delay":
                await asyncio.sleep(fault.value)
        answer = await self._forward(request, body)
        if answer.status == 201:
            self.rights.add(("create", resource))  # also by a server-side apply
        kept = self.elections if resource == "leases" else self.calls
        kept.append(Call(method, resource, namespace, name, answer.status, body, time.monotonic()))
        if fault and fault.kind == "silence after":
            await asyncio.sleep(SILENCE_SECONDS)
        lost = fault is not None and fault.kind in ("crash after", "drop after", "silence after")
        return self._cut_off(request, fault) if fault is not None and lost else answer

    def _note(self, request: web.Request) -> None:
        if not re.match("/api/v1/.|/apis/[^/]+/[^/]+/.", request.path):
            return  # It asks which resources exist.
        namespace, resource, name = _parsed(request.path)
        verb = VERBS[request.method]
        if verb == "get" and not name:
            verb = "watch" if request.query.get("watch") else "list"
        self.rights.add((verb, resource))
        self.requests.setdefault(namespace, Counter())[f"{verb} {resource}"] += 1

    def _due(self, method: str, namespace: str) -> Fault | None:
        self._counts[namespace] += 1
        fault = self.faults.get(namespace)
        if fault is None or namespace in self.happened or (fault.value == 422 and method == "POST"):
            return None
        return fault if fault.at <= self._counts[namespace] else None

    def _cut_off(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.kind.startswith("crash"):
            self.crash()
        _cut(request)
        return web.Response(status=502, text="never arrives")

    async def _read(self, request: web.Request, body: bytes, *, listing: bool) -> web.Response:
        known = self.stale if listing and not _selects(request) else None
        if known and request.path in known:
            return web.Response(body=known[request.path], content_type="application/json")
        answer = await self._forward(request, body)
        if known is not None and answer.body:
            known[request.path] = bytes(answer.body)  # type: ignore[arg-type]
        return answer

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
                async for chunk in self._until_expired(request, answer.content):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if not self.silent and not self.lose(json.loads(line)):
                            await stream.write(line + b"\n")
                return stream
        finally:
            self._watches.remove(request)

    async def _until_expired(self, request: web.Request, content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
        """What a watch shows; at its end that it is too old, if a test says so."""
        while True:
            try:
                async with asyncio.timeout(0.2):
                    chunk = await content.readany()
            except TimeoutError:
                if request not in self._expired:
                    continue
                self._expired.remove(request)
                yield json.dumps({"type": "ERROR", "object": _status(410, "Expired")}).encode() + b"\n"
                return
            if not chunk:
                return
            yield chunk

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
    if not parts:
        return "", "", ""  # what the API server serves
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    return namespace, "/".join([parts[0], *parts[2:]]), parts[1] if len(parts) > 1 else ""


def _selects(request: web.Request) -> bool:
    """Whether a listing is of new FineTuneJobs only."""
    return request.path.endswith("/finetunejobs") and "fieldSelector" in request.query


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _status(code: int, reason: str = "") -> Object:
    said = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": f"refused with {code}"}
    return {**said, "reason": reason} if reason else said


def _refusal(code: int) -> web.Response:
    return web.json_response(_status(code), status=code, headers={"Retry-After": "1"} if code == 429 else {})
