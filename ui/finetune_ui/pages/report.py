"""The report about the data: a user asks for it, a pod reads it, and the page looks for it until it is here."""

from finetune_cli import jobs
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from finetune_ui import render
from finetune_ui.guard import is_part, state_of
from finetune_ui.session import User


async def job_report(request: Request, user: User) -> Response:
    """The report, or that it is on its way."""
    state, namespace, name = state_of(request), request.path_params["namespace"], request.path_params["name"]
    job = await state.kube.call(user, namespace, jobs.get, name)
    return _part(request, name, namespace, state.reports.find(user, job))


async def job_report_fetch(request: Request, user: User, _: FormData) -> Response:
    """Begin to fetch."""
    state, namespace, name = state_of(request), request.path_params["namespace"], request.path_params["name"]
    job = await state.kube.call(user, namespace, jobs.get, name)
    fetch = state.reports.start(user, job)
    if not is_part(request):
        return RedirectResponse(f"/ns/{namespace}/jobs/{name}#report", 303)
    return _part(request, name, namespace, fetch)


def _part(request: Request, name: str, namespace: str, fetch: object) -> Response:
    content = render.fragment(
        "report.html",
        name=name,
        namespace=namespace,
        fetch=fetch,
        may_report=True,
        csrf=state_of(request).sessions.form_token(request),
    )
    return HTMLResponse(content)
