"""The report about the data: a user asks for it, a pod reads it, and the page looks for it until it is here."""

from finetune_cli import jobs
from finetune_cli.cluster.client import Client, Object
from finetune_cli.workspace.report import data_report
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from finetune_ui import render
from finetune_ui.fetches import PATIENCE_SECONDS, Fetch
from finetune_ui.guard import is_part, state_of
from finetune_ui.session import User
from finetune_ui.state import State


async def job_report(request: Request, user: User) -> Response:
    """The report, or that it is on its way."""
    state, namespace, name = state_of(request), request.path_params["namespace"], request.path_params["name"]
    job = await state.kube.call(user, namespace, jobs.get, name)
    return _part(request, name, namespace, find(state, user, job))


async def job_report_fetch(request: Request, user: User, _: FormData) -> Response:
    """Begin to fetch."""
    state, namespace, name = state_of(request), request.path_params["namespace"], request.path_params["name"]
    job = await state.kube.call(user, namespace, jobs.get, name)
    fetch = state.fetches.start(user, namespace, _about(job), lambda client: _report(client, job))
    if not is_part(request):
        return RedirectResponse(f"/ns/{namespace}/jobs/{name}#report", 303)
    return _part(request, name, namespace, fetch)


def find(state: State, user: User, job: Object) -> Fetch | None:
    """The report that this user asked for."""
    return state.fetches.find(user, _about(job))


def _about(job: Object) -> str:
    return f"report {job['metadata']['uid']}"


def _report(client: Client, job: Object) -> str:
    return data_report(client, job, "text", None, PATIENCE_SECONDS)


def _part(request: Request, name: str, namespace: str, fetch: Fetch | None) -> Response:
    content = render.fragment(
        "report.html",
        name=name,
        namespace=namespace,
        fetch=fetch,
        may_report=True,
        csrf=state_of(request).sessions.form_token(request),
    )
    return HTMLResponse(content)
