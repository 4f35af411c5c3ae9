"""A server on loopback that plays the API server for pods that read a workspace: their objects, and commands in them
over a WebSocket, as `kubectl exec` runs them.

The commands of the trainer's reader run for real, on a folder. A test says which connections break, and after how many
bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from finetune_cli.cluster.client import Client
from finetune_cli.cluster.kubeconfig import Settings
from finetune_cli.cluster.refusals import Refusals
from finetune_trainer import reader

Object = dict[str, Any]
Talk = Callable[[str], list[str]]
"""A line of the standard input -> lines of the standard output."""

RUNNING = {"phase": "Running", "containerStatuses": [{"name": "reader", "state": {"running": {}}}]}
PART = 4096


class Cluster:
    """One namespace. Tests read what was asked, and set what is answered."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.job: Object = {}
        self.pods: dict[str, Object] = {}
        self.created: list[Object] = []
        self.deleted: list[str] = []
        self.commands: list[list[str]] = []
        self.claim: Object | None = {"status": {"accessModes": ["ReadWriteMany"]}}
        self.refused: set[str] = set()
        """Verbs and resources that the user may not use, such as `post pods`."""
        self.status: Object = RUNNING
        self.cuts: list[int] = []
        """Bytes after which each connection breaks; later connections end in order."""
        self.talk: Talk = lambda line: [json.dumps({"answer": json.loads(line)})]
        self.ends_with: tuple[int, str] | None = None
        """Exit code and standard error of every command, instead of what it does."""
        self.on_exec: Callable[[], None] = lambda: None
        self.refusals: list[int] = []
        """How many requests are refused after each cut, as by an API server that has just started."""
        self._refuses = 0

    def app(self) -> web.Application:
        app = web.Application()
        core = "/api/v1/namespaces/team"
        app.router.add_get(f"{core}/persistentvolumeclaims/{{name}}", self._get_claim)
        app.router.add_get(f"{core}/pods", self._list)
        app.router.add_post(f"{core}/pods", self._create)
        app.router.add_get(f"{core}/pods/{{name}}", self._get)
        app.router.add_delete(f"{core}/pods/{{name}}", self._delete)
        app.router.add_get(f"{core}/pods/{{name}}/exec", self._exec)
        app.router.add_get(f"{core}/events", self._events)
        app.router.add_get("/apis/finetune-operator.io/v1alpha1/namespaces/team/finetunejobs/a", self._job)
        return app

    def _denied(self, what: str) -> web.Response | None:
        return _status(403, f"user cannot {what}") if what in self.refused else None

    async def _get_claim(self, _: web.Request) -> web.Response:
        return web.json_response(self.claim) if self.claim is not None else _status(404, "no claim")

    async def _job(self, _: web.Request) -> web.Response:
        return web.json_response(self.job)

    async def _events(self, _: web.Request) -> web.Response:
        return web.json_response({"items": [{"message": "volume is lost", "lastTimestamp": "2026-01-31T12:00:00Z"}]})

    async def _list(self, request: web.Request) -> web.Response:
        wanted = dict(part.split("=", 1) for part in request.query.get("labelSelector", "").split(",") if part)
        found = [pod for pod in self.pods.values() if wanted.items() <= pod["metadata"].get("labels", {}).items()]
        return self._denied("list pods") or web.json_response({"items": found, "metadata": {}})

    async def _create(self, request: web.Request) -> web.Response:
        if refused := self._denied("create pods"):
            return refused
        pod = await request.json()
        self.created.append(pod)
        self.pods[pod["metadata"]["name"]] = {**pod, "status": self.status}
        pod["metadata"]["uid"] = "pod-uid"
        return web.json_response(pod, status=201)

    async def _get(self, request: web.Request) -> web.Response:
        pod = self.pods.get(request.match_info["name"])
        return web.json_response(pod) if pod else _status(404, "no pod")

    async def _delete(self, request: web.Request) -> web.Response:
        if refused := self._denied("delete pods"):
            return refused
        self.deleted.append(request.match_info["name"])
        return web.json_response(self.pods.pop(request.match_info["name"], {}))

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        if refused := self._denied("get pods/exec"):
            return refused
        if self._refuses:
            self._refuses -= 1
            return _status(403, "user cannot do anything yet")
        if request.match_info["name"] not in self.pods:
            return _status(404, "no pod")
        self.on_exec()
        command = request.query.getall("command")
        self.commands.append(command)
        socket = web.WebSocketResponse(protocols=["v5.channel.k8s.io"])
        await socket.prepare(request)
        cut = self.cuts.pop(0) if self.cuts else None
        async for channel, data in self._run(command, socket):
            if channel == 1 and cut is not None and len(data) >= cut:
                await socket.send_bytes(bytes([channel]) + data[:cut])
                assert request.transport is not None
                request.transport.abort()
                self._refuses = self.refusals.pop(0) if self.refusals else 0
                return socket
            cut = None if cut is None else cut - len(data)
            await socket.send_bytes(bytes([channel]) + data)
        await socket.close()
        return socket

    async def _run(self, command: list[str], socket: web.WebSocketResponse) -> Any:
        """(channel, data) of a command, up to its status."""
        code, words, rest = 0, "", b""
        if self.ends_with:
            code, words = self.ends_with
        elif command[2] == "finetune_trainer.reader":
            out, errors = io.BytesIO(), io.StringIO()
            with contextlib.redirect_stderr(errors):
                code = reader.main(["--workspace", str(self.workspace), *command[3:]], out)
            words = errors.getvalue()
            for at in range(0, len(out.getvalue()), PART):
                yield 1, out.getvalue()[at : at + PART]
        else:
            async for message in socket:
                if message.type is not WSMsgType.BINARY or message.data[0] == 255:
                    break
                *lines, rest = (rest + message.data[1:]).split(b"\n")
                for line in lines:
                    for answer in self.talk(line.decode()):
                        yield 1, answer.encode() + b"\n"
        if words:
            yield 2, words.encode()
        causes = {"causes": [{"reason": "ExitCode", "message": str(code)}]}
        failure = {"status": "Failure", "reason": "NonZeroExitCode", "details": causes}
        yield 3, json.dumps(failure if code else {"status": "Success"}).encode()


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "message": message, "code": code}, status=code)


@contextmanager
def served(cluster: Cluster) -> Iterator[Client]:
    """A client of a server that plays this cluster."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(cluster.app(), handle_signals=False, shutdown_timeout=0.1)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    port = runner.addresses[0][1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield Client(Settings(f"http://127.0.0.1:{port}", "team", "test"), refusals=Refusals())
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
