"""Jobs side by side, and what keeps them live: curves, results, and the settings that differ."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from finetune_cli import clock, jobs, paths
from finetune_cli import compare as side_by_side
from finetune_cli.cluster.client import Object
from finetune_cli.problem import Problem
from starlette.requests import Request
from starlette.responses import Response

from finetune_ui import render
from finetune_ui.drawing import charts
from finetune_ui.guard import state_of
from finetune_ui.names import is_name
from finetune_ui.session import User
from finetune_ui.stream import EventStream, event
from finetune_ui.texts import text

MOST = 8
PAUSE_SECONDS = 1.0
"""Changes that come within this time are shown together."""


async def compare_page(request: Request, user: User) -> Response:
    """The jobs that the address names."""
    namespace, names = request.path_params["namespace"], _names(request)
    kube = state_of(request).kube
    found = await asyncio.gather(*(kube.call(user, namespace, jobs.get, name) for name in names))
    return render.page(
        request,
        "compare.html",
        **_values(dict(zip(names, found, strict=True)), request.query_params.get("metric", "")),
        query=request.url.query,
    )


async def compare_live(request: Request, user: User) -> Response:
    """What changes of these jobs, while the page is open."""
    state, namespace, names = state_of(request), request.path_params["namespace"], _names(request)
    # A watch that others opened must not show more than this request may see.
    await state.kube.get(user, paths.jobs(namespace), limit=1)
    return EventStream(_changes(request, user, namespace, names))


async def _changes(request: Request, user: User, namespace: str, names: list[str]) -> AsyncIterator[str]:
    metric, shown, metrics, gone = request.query_params.get("metric", ""), dict[str, Object](), None, set[str]()
    async with state_of(request).hub.viewer(user, namespace) as viewer:
        while await viewer.change():
            there = {job["metadata"]["name"]: job for job in viewer.jobs.values()}
            # A job that is deleted stays as it was: the others can still be compared with it.
            found = {name: there.get(name) or shown.get(name) for name in names}
            known = {name: job for name, job in found.items() if job is not None}
            lost = known.keys() - there.keys()
            if lost - gone or any(job is not shown.get(name) for name, job in known.items()):
                values = _values(known, metric)
                new = values["metrics"] != metrics
                parts = {**values, "namespace": namespace, "new_metrics": new, "gone": sorted(lost)}
                yield event("rows", render.fragment("compare_live.html", **parts))
                shown, metrics, gone = known, values["metrics"], lost
            await asyncio.sleep(PAUSE_SECONDS)


def _names(request: Request) -> list[str]:
    names = list(dict.fromkeys(name for name in request.query_params.getlist("job") if is_name(name)))
    if len(names) > MOST:
        raise Problem(text("compare.many", most=MOST))
    return names


def _values(found: dict[str, Object], asked: str) -> dict[str, Any]:
    metrics, every = charts.metrics_of(found), list(found.values())
    metric = asked if asked in metrics else next(iter(metrics), "")
    chart = charts.of_jobs(found, metric) if metric else None
    return {
        "names": list(found),
        "metrics": metrics,
        "metric": metric,
        "charts": [chart] if chart else [],
        "results": side_by_side.outcomes(every, clock.now()),
        "settings": side_by_side.differences(every),
    }
