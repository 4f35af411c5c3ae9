"""Jobs side by side: curves, results, and the settings that differ."""

import asyncio

from finetune_cli import clock, jobs
from finetune_cli import compare as side_by_side
from finetune_cli.problem import Problem
from starlette.requests import Request
from starlette.responses import Response

from finetune_ui import render
from finetune_ui.drawing import charts
from finetune_ui.guard import state_of
from finetune_ui.names import is_name
from finetune_ui.session import User
from finetune_ui.texts import text

MOST = 8


async def compare_page(request: Request, user: User) -> Response:
    """The jobs that the address names."""
    namespace = request.path_params["namespace"]
    names = list(dict.fromkeys(name for name in request.query_params.getlist("job") if is_name(name)))
    if len(names) > MOST:
        raise Problem(text("compare.many", most=MOST))
    kube = state_of(request).kube
    found = await asyncio.gather(*(kube.call(user, namespace, jobs.get, name) for name in names))
    by_name = dict(zip(names, found, strict=True))
    metrics = charts.metrics_of(by_name)
    metric = request.query_params.get("metric", "")
    metric = metric if metric in metrics else next(iter(metrics), "")
    chart = charts.of_jobs(by_name, metric) if metric else None
    return render.page(
        request,
        "compare.html",
        names=names,
        metrics=metrics,
        metric=metric,
        charts=[chart] if chart else [],
        results=side_by_side.outcomes(found, clock.now()),
        settings=side_by_side.differences(found),
    )
