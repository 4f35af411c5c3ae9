"""The list of jobs, and what keeps it live."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from finetune_cli import jobs, paths
from finetune_cli.cluster.client import Object
from starlette.requests import Request
from starlette.responses import Response

from finetune_ui import listing, render
from finetune_ui.guard import state_of
from finetune_ui.listing import Query, Selection
from finetune_ui.session import User
from finetune_ui.stream import EventStream, event

PAUSE_SECONDS = 0.5
"""Changes that come within this time are shown together."""


async def jobs_page(request: Request, user: User) -> Response:
    """The list, as the address asks for it."""
    namespace, query = request.path_params["namespace"], Query.of(request.query_params)
    found = await state_of(request).kube.call(user, namespace, jobs.all_of)
    chosen = listing.select(found, query)
    live = f"/ns/{namespace}/live{query.address(page=chosen.page)}"
    return render.page(
        request,
        "jobs.html",
        **_values(chosen, query),
        live=f"{live}{'' if live.endswith('?') else '&'}seen={chosen.digest}",
        phases=listing.PHASES,
        stages=listing.STAGES,
    )


async def jobs_live(request: Request, user: User) -> Response:
    """Rows that change, while the page is open."""
    state, namespace = state_of(request), request.path_params["namespace"]
    # A watch that others opened must not show more than this request may see.
    await state.kube.get(user, paths.jobs(namespace), limit=1)
    return EventStream(_changes(request, user, namespace))


async def _changes(request: Request, user: User, namespace: str) -> AsyncIterator[str]:
    query, seen = Query.of(request.query_params), request.query_params.get("seen", "")
    shown: dict[str, Object] | None = None
    async with state_of(request).hub.viewer(user, namespace) as viewer:
        while await viewer.change():
            chosen = listing.select(viewer.jobs.values(), query)
            found = {job["metadata"]["uid"]: job for job in chosen.found}
            if shown is None:
                text = "" if chosen.digest == seen else _all(chosen, query, namespace)
            elif list(found) != list(shown):
                text = _all(chosen, query, namespace)
            else:
                text = _rows([job for uid, job in found.items() if job is not shown[uid]])
            shown = found
            if text:
                yield event("rows", text)
            await asyncio.sleep(PAUSE_SECONDS)


def _values(chosen: Selection, query: Query) -> dict[str, Any]:
    return {"chosen": chosen, "rows": [listing.row(job) for job in chosen.found], "query": query}


def _all(chosen: Selection, query: Query, namespace: str) -> str:
    return render.fragment("jobs_live.html", **_values(chosen, query), namespace=namespace)


def _rows(found: list[Object]) -> str:
    return render.fragment("rows_live.html", rows=[listing.row(job) for job in found]) if found else ""
