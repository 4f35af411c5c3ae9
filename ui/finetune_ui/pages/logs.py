"""The logs of a job's pods, as they are written. The kubelet sends them with the user's own rights."""

import asyncio
import html
import http.client
from collections.abc import AsyncIterator

from finetune_cli import jobs
from finetune_cli.cluster.client import Client, Object
from finetune_cli.logs import pods, reader
from finetune_cli.problem import Problem
from starlette.requests import Request
from starlette.responses import Response

from finetune_ui import render
from finetune_ui.guard import state_of
from finetune_ui.session import User
from finetune_ui.stream import EventStream, event
from finetune_ui.texts import text

ALL = "all"
TAIL = 1000
HELD, TOGETHER = 2000, 200
MOST = 16
"""Pods whose logs are read at once."""
END = None


async def job_logs(request: Request, user: User) -> Response:
    """The choice of a pod, and its log."""
    namespace, name = request.path_params["namespace"], request.path_params["name"]
    found = await state_of(request).kube.call(user, namespace, _started, name)
    asked = request.query_params.get("pod", "")
    chosen = asked if asked == ALL or any(asked == pod["metadata"]["name"] for pod in found) else ""
    labelled = [(pod["metadata"]["name"], _label(pod)) for pod in reversed(found)]
    chosen = chosen or (labelled[0][0] if labelled else "")
    return render.page(request, "logs.html", name=name, pods=labelled, chosen=chosen, all=ALL)


async def job_logs_live(request: Request, user: User) -> Response:
    """The lines."""
    namespace, name = request.path_params["namespace"], request.path_params["name"]
    found = await state_of(request).kube.call(user, namespace, _started, name)
    asked = request.query_params.get("pod", "")
    if asked == ALL and found:
        newest = pods.order(found[-1])[:2]
        chosen = [pod for pod in found if pods.order(pod)[:2] == newest][:MOST]
    else:
        chosen = [pod for pod in found if pod["metadata"]["name"] == asked]
    return EventStream(_lines(user, namespace, chosen))


async def _lines(user: User, namespace: str, found: list[Object]) -> AsyncIterator[str]:
    """Events with the lines of all pods, until their containers have ended. A log that comes faster than the browser
    takes it waits in the cluster."""
    inbox: asyncio.Queue[str | None] = asyncio.Queue(HELD)
    clients = [user.client(namespace) for _ in found]
    loop = asyncio.get_running_loop()
    reading = len(found)
    try:
        for client, pod in zip(clients, found, strict=True):
            head = f"{_label(pod)} | " if len(found) > 1 else ""
            reader.in_thread(f"log of {pod['metadata']['name']}", _read, client, pod, head, inbox, loop)
        while reading:
            lines = [await inbox.get()]
            while not inbox.empty() and len(lines) < TOGETHER:
                lines.append(inbox.get_nowait())
            reading -= lines.count(END)
            if text_lines := [html.escape(line) for line in lines if line is not None]:
                yield event("lines", "<span>" + "\n".join(text_lines) + "\n</span>")
        yield event("ended", html.escape(text("logs.ended")))
    finally:
        for client in clients:
            client.interrupt()
        while not inbox.empty():  # a thread that waits for room finds it, and ends
            inbox.get_nowait()


def _read(
    client: Client, pod: Object, head: str, inbox: "asyncio.Queue[str | None]", loop: asyncio.AbstractEventLoop
) -> None:
    def put(line: str | None) -> None:
        asyncio.run_coroutine_threadsafe(inbox.put(line), loop).result(timeout=600)

    try:
        for line in reader.lines(client, pod, follow=True, query={"tailLines": TAIL}):
            put(head + line.text)
    except Problem as problem:
        put(f"{head}{problem}")
    except (OSError, http.client.HTTPException, TimeoutError, RuntimeError):
        return  # nobody reads any more
    put(END)


def _started(client: Client, name: str) -> list[Object]:
    return [pod for pod in pods.of_job(client, jobs.get(client, name)) if reader.started(pod)]


def _label(pod: Object) -> str:
    return f"{pods.kind(pod)}-{pods.attempt(pod)}/{pods.rank(pod)}"
