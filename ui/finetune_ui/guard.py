"""Routes for users alone: each handler gets the user of its request, and each failure becomes a page with advice.

The application makes every route that shows or changes anything of a cluster here, so no handler can forget to ask.
"""

import logging
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from finetune_cli.cluster.errors import ApiError
from finetune_cli.problem import Exit, Problem
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from finetune_ui import render
from finetune_ui.session import User
from finetune_ui.state import State
from finetune_ui.texts import text

Handler = Callable[[Request, User], Awaitable[Response]]
FormHandler = Callable[[Request, User, FormData], Awaitable[Response]]
FIELDS = 5000
STATUS = {Exit.DENIED: 403, Exit.NOT_FOUND: 404, Exit.UNREACHABLE: 502, Exit.REFUSED: 409}
WHAT = {403: "denied", 404: "missing", 409: "refused", 502: "down"}
log = logging.getLogger("finetune_ui")


def state_of(request: Request) -> State:
    """What requests share."""
    found: State = request.app.state.ui
    return found


def shown(path: str, handler: Handler) -> Route:
    """A route that only reads."""

    async def endpoint(request: Request) -> Response:
        return await _answered(request, lambda user: handler(request, user))

    return Route(path, endpoint, methods=["GET"], name=handler.__name__)


def changed(path: str, handler: FormHandler) -> Route:
    """A route for a form of ours."""

    async def endpoint(request: Request) -> Response:
        form = await posted(request)
        return await _answered(request, lambda user: handler(request, user, form))

    return Route(path, endpoint, methods=["POST"], name=handler.__name__)


async def posted(request: Request) -> FormData:
    """The form. Raises HTTPException if no page of ours has sent it."""
    form = await request.form(max_files=1, max_fields=FIELDS)
    if not state_of(request).sessions.is_own_form(request, str(form.get("csrf", ""))):
        raise HTTPException(403, text("errors.form"))
    return form


async def _answered(request: Request, work: Callable[[User], Awaitable[Response]]) -> Response:
    try:
        user = state_of(request).sessions.user(request)
        if user is None:
            return again(request) if from_elsewhere(request) else to_login(request)
        request.state.user = user
        return await work(user)
    except Problem as problem:
        return failed(request, problem)


def from_elsewhere(request: Request) -> bool:
    """Whether a link of another site led here. Browsers leave out our cookie then, as SameSite=Strict wants it."""
    return request.method == "GET" and request.headers.get("sec-fetch-site") in ("cross-site", "same-site")


def again(request: Request) -> Response:
    """A page that loads the same address once more, as a step within our own site, so with the cookie."""
    return render.page(request, "again.html")


def to_login(request: Request) -> Response:
    """The way to log in. A part of a page and a stream cannot be redirected."""
    if is_part(request):
        response = Response(text("errors.login"), 401, media_type="text/plain")
        response.headers["HX-Redirect"] = "/login"
        return response
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/login?next={quote(here)}" if request.method == "GET" and here != "/" else "/login", 303)


def failed(request: Request, problem: Problem) -> Response:
    """What a failure means for the user."""
    status = problem.status if isinstance(problem, ApiError) else 0
    if status == 401:
        response = to_login(request)
        state_of(request).sessions.log_out(response)
        return response
    if status < 400:
        status = STATUS.get(problem.code, 400)
    return error(request, 502 if status >= 500 else status, str(problem))


def error(request: Request, status: int, message: str) -> Response:
    """A page, or a part of a page."""
    what = text(f"errors.{WHAT.get(status, 'refused' if status < 500 else 'broken')}")
    if is_part(request):
        return HTMLResponse(render.fragment("message.html", message=message, bad=True), status)
    return render.page(request, "error.html", status, what=what, message=message)


async def refused(request: Request, exception: Exception) -> Response:
    """For what the framework refuses: unknown addresses, wrong methods, forged forms."""
    assert isinstance(exception, HTTPException)
    known = {404: text("errors.missing_help"), 405: text("errors.method")}
    return error(request, exception.status_code, known.get(exception.status_code, exception.detail))


async def too_large(request: Request, _: Exception) -> Response:
    """For a body that exceeds the limit."""
    return error(request, 413, text("errors.large"))


async def broken(request: Request, exception: Exception) -> Response:
    """For errors of our own. The log names the route, not the address: it could have what a user typed."""
    route = request.scope.get("route")
    log.error("%s %s failed", request.method, getattr(route, "path", "?"), exc_info=exception)
    return error(request, 500, text("errors.broken_help"))


def is_part(request: Request) -> bool:
    """Whether the answer goes into a page, or is a stream."""
    return "hx-request" in request.headers or "text/event-stream" in request.headers.get("accept", "")
