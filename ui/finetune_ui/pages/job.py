"""The page of a job, and what keeps it live."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from finetune_cli import clock, jobs, paths, timeline
from finetune_cli import why as reasons
from finetune_cli.cluster.client import Client, Object
from finetune_cli.output import to_yaml
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from finetune_ui import buttons, loading, render
from finetune_ui.drawing import charts, graph
from finetune_ui.guard import state_of
from finetune_ui.pages import report
from finetune_ui.session import User
from finetune_ui.stream import EventStream, event

PAUSE_SECONDS = 1.0
HISTORY = ("conditions", "attempts", "prepareAttempts", "checkpoint")
"""Parts of the status whose change is a new line of the timeline."""
NO_PROGRESS: dict[str, Any] = dict.fromkeys(("eta", "loss", "epoch", "tokensPerSecond", "lastUpdateTime"), "")
"""What a trainer may not report."""


async def job_page(request: Request, user: User) -> Response:
    """Everything about a job but its logs."""
    state, namespace, name = state_of(request), request.path_params["namespace"], request.path_params["name"]
    (job, happened), rights = await asyncio.gather(
        state.kube.call(user, namespace, _with_events, name), state.rights.of(state.kube, user, namespace)
    )
    return render.page(
        request,
        "job.html",
        **_live_values(job, rights),
        history=timeline.timeline(job, happened),
        spec=to_yaml(plain(job)),
        has_log="get pods/log" in rights,
        may_report="create pods" in rights,
        fetch=report.find(state, user, job),
    )


async def job_live(request: Request, user: User) -> Response:
    """What changes of a job, while its page is open."""
    state, namespace, name = state_of(request), request.path_params["namespace"], request.path_params["name"]
    await state.kube.get(user, paths.jobs(namespace), limit=1)
    rights = await state.rights.of(state.kube, user, namespace)
    token = state.sessions.form_token(request)
    return EventStream(_changes(request, user, namespace, name, rights, token))


async def _changes(
    request: Request, user: User, namespace: str, name: str, rights: frozenset[str], csrf: str
) -> AsyncIterator[str]:
    shown: Object | None = None
    async with state_of(request).hub.viewer(user, namespace) as viewer:
        while await viewer.change():
            job = next((each for each in viewer.jobs.values() if each["metadata"]["name"] == name), None)
            if job is None:
                if shown is not None:
                    yield event("rows", render.fragment("job_gone.html"))
                shown = None
            elif shown is None or job is not shown:
                values = _live_values(job, rights)
                said = shown is not None and jobs.phase(shown) != jobs.phase(job)
                yield event("rows", render.fragment("job_live.html", **values, csrf=csrf, said=said))
                if shown is not None and _history(job) != _history(shown):
                    yield event("timeline", "changed")
                shown = job
            await asyncio.sleep(PAUSE_SECONDS)


async def job_timeline(request: Request, user: User) -> Response:
    """The timeline as a part of the page."""
    state, namespace, name = state_of(request), request.path_params["namespace"], request.path_params["name"]
    job, happened = await state.kube.call(user, namespace, _with_events, name)
    return HTMLResponse(render.fragment("timeline.html", history=timeline.timeline(job, happened)))


async def job_graph(request: Request, user: User) -> Response:
    """The related jobs as a part of the page."""
    state, namespace, name = state_of(request), request.path_params["namespace"], request.path_params["name"]
    every = await state.kube.call(user, namespace, jobs.all_of)
    return HTMLResponse(render.fragment("graph.html", graph=graph.draw(every, name), namespace=namespace))


def plain(job: Object) -> Object:
    """The job as a user writes it."""
    metadata = job["metadata"]
    kept = {key: metadata[key] for key in ("name", "namespace", "labels") if metadata.get(key)}
    return {"apiVersion": job["apiVersion"], "kind": job["kind"], "metadata": kept, "spec": job["spec"]}


def _with_events(client: Client, name: str) -> tuple[Object, list[Object]]:
    job = jobs.get(client, name)
    return job, timeline.events(client, name, job["metadata"]["uid"])


def _live_values(job: Object, rights: frozenset[str]) -> dict[str, Any]:
    status, at = jobs.status(job), clock.now()
    progress = status.get("progress") or {}
    return {
        "job": job,
        "name": job["metadata"]["name"],
        "namespace": job["metadata"]["namespace"],
        "phase": jobs.phase(job),
        "reason": status.get("reason") or "",
        "progress": {**NO_PROGRESS, "percent": None, **progress} if progress.get("summary") else None,
        "facts": [fact for fact in timeline.facts(job, at) if fact[0] not in ("Name", "Progress", "Message")],
        "why": reasons.paragraph(job, at),
        "charts": charts.of_job(job),
        "artifact": status.get("artifact"),
        "load": loading.lines(job),
        "buttons": buttons.of(job, rights),
    }


def _history(job: Object) -> tuple[Any, ...]:
    status = jobs.status(job)
    return tuple(status.get(key) for key in HISTORY)
