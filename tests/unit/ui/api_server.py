"""A server on loopback that plays the API server for the page: FineTuneJobs with watches, pods with logs, events.

Each token may use the namespaces that `RIGHTS` lists. Everything else is 403, as RBAC has it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

Object = dict[str, Any]
JOBS = "/apis/finetune-operator.io/v1alpha1/namespaces/{namespace}/finetunejobs"
CORE = "/api/v1/namespaces/{namespace}"
RIGHTS = {"token-of-a": {"team-a"}, "token-of-b": {"team-b"}, "token-of-both": {"team-a", "team-b"}}
READ_ONLY = "token-that-reads"
TIME = "2026-01-31T12:00:00Z"


def job(name: str, namespace: str = "team-a", **status: Any) -> Object:
    """A FineTuneJob as the API server has it."""
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{namespace}-{name}",
            "generation": 1,
            "creationTimestamp": TIME,
        },
        "spec": {
            "stage": "sft",
            "model": {"source": "pvc://models/base"},
            "datasets": [{"source": "pvc://models/rows.jsonl", "format": "openai"}],
            "training": {"epochs": 1},
            "workspace": {"claimName": "workspace"},
        },
        "status": {"observedGeneration": 1, "phase": "Running", "reason": "Running", **status},
    }


def pod(of: Object, rank: int = 0) -> Object:
    """A pod of a job that writes its log."""
    name = of["metadata"]["name"]
    return {
        "metadata": {
            "name": f"{name}-{of['metadata']['uid'][:5]}-1-{rank}-x",
            "namespace": of["metadata"]["namespace"],
            "uid": f"pod-{rank}",
            "labels": {
                "finetune-operator.io/job": name,
                "finetune-operator.io/kind": "train",
                "finetune-operator.io/attempt": "1",
                "batch.kubernetes.io/job-completion-index": str(rank),
            },
        },
        "spec": {},
        "status": {
            "phase": "Running",
            "containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 0}}}],
        },
    }


class ApiServer:
    """What exists, who asked for what, and which watches are open."""

    def __init__(self) -> None:
        self.jobs: dict[tuple[str, str], Object] = {}
        self.pods: list[Object] = []
        self.events: list[Object] = []
        self.log: list[str] = []
        self.asked: list[tuple[str, str, str]] = []
        """Token, method, path with its query."""
        self.changes: list[Object] = []
        """Bodies of patches and deletions."""
        self.watches: list[asyncio.Queue[Object]] = []
        self.history: list[Object] = []
        self.closed = threading.Event()
        """A watch was closed by its client."""
        self.opened = threading.Event()
        self.refusals = 0
        """Requests that are still refused, as by an API server that has not read the roles yet."""
        self.version = 100
        self.url = ""
        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()

    def put(self, changed: Object) -> None:
        """Create or change a job; watches hear of it."""
        key = changed["metadata"]["namespace"], changed["metadata"]["name"]
        self.version += 1
        changed["metadata"]["resourceVersion"] = str(self.version)
        kind = "MODIFIED" if key in self.jobs else "ADDED"
        self.jobs[key] = changed
        self._tell({"type": kind, "object": changed})

    def remove(self, namespace: str, name: str) -> None:
        """Delete a job."""
        removed = self.jobs.pop((namespace, name))
        self.version += 1
        removed["metadata"]["resourceVersion"] = str(self.version)
        self._tell({"type": "DELETED", "object": removed})

    def _tell(self, event: Object) -> None:
        text = json.loads(json.dumps(event))
        self.history.append(text)
        for queue in self.watches:
            self.loop.call_soon_threadsafe(queue.put_nowait, text)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._who])
        app.router.add_get(JOBS, self._list)
        app.router.add_post(JOBS, self._create)
        app.router.add_get(JOBS + "/{name}", self._get)
        app.router.add_patch(JOBS + "/{name}", self._patch)
        app.router.add_delete(JOBS + "/{name}", self._delete)
        app.router.add_get(CORE + "/pods", self._pods)
        app.router.add_get(CORE + "/pods/{name}", self._pod)
        app.router.add_get(CORE + "/pods/{name}/log", self._log)
        app.router.add_get(CORE + "/events", self._events)
        app.router.add_get(CORE + "/persistentvolumeclaims/{name}", self._nothing)
        app.router.add_get("/api/v1/namespaces", self._namespaces)
        app.router.add_post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", self._review)
        app.router.add_post("/apis/authentication.k8s.io/v1/selfsubjectreviews", self._self)
        return app

    @web.middleware
    async def _who(self, request: web.Request, handler: Any) -> web.StreamResponse:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.asked.append((token, request.method, request.path_qs))
        if token not in RIGHTS and token != READ_ONLY:
            return _status(401, "Unauthorized")
        if self.refusals:
            self.refusals -= 1
            return _status(403, "user cannot do anything yet")
        namespace = request.match_info.get("namespace")
        allowed = RIGHTS.get(token, {"team-a"})
        if namespace is not None and namespace not in allowed:
            return _status(403, f"user of {token[:5]} cannot use namespace {namespace}")
        creates = request.method == "POST" and request.path.endswith("/finetunejobs")
        if token == READ_ONLY and (creates or request.method in ("PATCH", "DELETE")):
            return _status(403, "you only read")
        response: web.StreamResponse = await handler(request)
        return response

    async def _list(self, request: web.Request) -> web.StreamResponse:
        namespace = request.match_info["namespace"]
        if "watch" in request.query:
            return await self._watch(request, namespace)
        found = [each for (inside, _), each in self.jobs.items() if inside == namespace]
        return web.json_response({"items": found, "metadata": {"resourceVersion": str(self.version)}})

    async def _watch(self, request: web.Request, namespace: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[Object] = asyncio.Queue()
        since = int(request.query["resourceVersion"])
        for event in self.history:
            if int(event["object"]["metadata"]["resourceVersion"]) > since:
                queue.put_nowait(event)
        self.watches.append(queue)
        self.closed.clear()
        self.opened.set()
        try:
            while True:
                event = await queue.get()
                if event["object"]["metadata"]["namespace"] == namespace:
                    await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self.watches.remove(queue)
            self.closed.set()

    async def _get(self, request: web.Request) -> web.Response:
        found = self.jobs.get((request.match_info["namespace"], request.match_info["name"]))
        if found is None:
            return _status(404, "not found", {"name": request.match_info["name"]})
        return web.json_response(found)

    async def _create(self, request: web.Request) -> web.Response:
        created = await request.json()
        created["metadata"] |= {"creationTimestamp": TIME, "uid": f"uid-{created['metadata']['name']}"}
        self.changes.append(created)
        if request.query.get("dryRun") != "All":
            self.put(created)
        return web.json_response(created, status=201)

    async def _patch(self, request: web.Request) -> web.Response:
        found = self.jobs[request.match_info["namespace"], request.match_info["name"]]
        self.changes.append(await request.json())
        found["spec"].update(self.changes[-1]["spec"])
        self.put(found)
        return web.json_response(found)

    async def _delete(self, request: web.Request) -> web.Response:
        self.changes.append(await request.json())
        self.remove(request.match_info["namespace"], request.match_info["name"])
        return web.json_response({})

    async def _pods(self, request: web.Request) -> web.Response:
        namespace, selector = request.match_info["namespace"], request.query.get("labelSelector", "=").partition("=")
        found = [
            each
            for each in self.pods
            if each["metadata"]["namespace"] == namespace and each["metadata"]["labels"].get(selector[0]) == selector[2]
        ]
        return web.json_response({"items": found, "metadata": {}})

    async def _pod(self, request: web.Request) -> web.Response:
        for each in self.pods:
            if each["metadata"]["name"] == request.match_info["name"]:
                return web.json_response(each)
        return _status(404, "no pod")

    async def _log(self, _: web.Request) -> web.Response:
        return web.Response(text="".join(f"{TIME[:-1]}.{at:09}Z {line}\n" for at, line in enumerate(self.log)))

    async def _events(self, _: web.Request) -> web.Response:
        return web.json_response({"items": self.events, "metadata": {}})

    async def _nothing(self, _: web.Request) -> web.Response:
        return _status(404, "nothing")

    async def _namespaces(self, _: web.Request) -> web.Response:
        return _status(403, "namespaces is forbidden")

    async def _review(self, request: web.Request) -> web.Response:
        asked = (await request.json())["spec"]["resourceAttributes"]
        token = request.headers["Authorization"].removeprefix("Bearer ")
        reads = asked["verb"] == "get"
        allowed = asked["namespace"] in RIGHTS.get(token, {"team-a"}) and (reads or token != READ_ONLY)
        return web.json_response({"status": {"allowed": allowed}})

    async def _self(self, _: web.Request) -> web.Response:
        return web.json_response({"status": {"userInfo": {"username": "somebody"}}})


def _status(code: int, message: str, details: Object | None = None) -> web.Response:
    body = {"kind": "Status", "message": message, "reason": "x", "details": details or {}}
    return web.json_response(body, status=code)


@contextmanager
def served() -> Iterator[ApiServer]:
    """The server in a thread."""
    server, started = ApiServer(), threading.Event()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(server.app(), handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def run() -> None:
        asyncio.set_event_loop(server.loop)
        runner = server.loop.run_until_complete(start())
        started.set()
        server.loop.run_forever()
        server.loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        server.loop.call_soon_threadsafe(server.loop.stop)
        thread.join(10)
        server.loop.close()
