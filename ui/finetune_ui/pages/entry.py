"""Who comes in: the form for a token, the address that a laptop opens, and the way out."""

from typing import Any

from finetune_cli.cluster.client import Client
from finetune_cli.cluster.errors import ApiError
from finetune_cli.problem import Exit, Problem
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from finetune_ui import render
from finetune_ui.guard import failed, posted, state_of
from finetune_ui.texts import text

REVIEW = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
REVIEWS = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


async def login(request: Request) -> Response:
    """The form."""
    return _form(request, request.query_params.get("next", ""))


async def log_in(request: Request) -> Response:
    """Ask the API server who the token belongs to, and remember it."""
    form, state = await posted(request), state_of(request)
    target = local(str(form.get("next", "")))
    token = str(form.get("token", "")).strip()
    if state.settings.laptop or state.settings.token_header or not token:
        return _form(request, target, text("login.empty"), 400)
    try:
        user = state.sessions.of_token(token)
        user = state.sessions.of_token(token, await state.kube.call(user, "", _name))
        response = RedirectResponse(target or "/", 303)
        state.sessions.log_in(response, user)
        return response
    except Problem as problem:
        if isinstance(problem, ApiError) and problem.status == 401:
            return _form(request, target, text("login.wrong"), 401)
        if problem.code is Exit.DENIED or not isinstance(problem, ApiError):
            return _form(request, target, str(problem), 400)
        return failed(request, problem)


async def enter(request: Request) -> Response:
    """The address that a laptop opens: its key is valid once, and leaves the address at once."""
    sessions = state_of(request).sessions
    user = sessions.enter(request.query_params.get("key", ""))
    if user is None:
        return _form(request, "", text("login.laptop"), 403)
    response = RedirectResponse("/", 303)
    sessions.log_in(response, user)
    return response


async def log_out(request: Request) -> Response:
    """Forget the token."""
    await posted(request)
    response = RedirectResponse("/login", 303)
    state_of(request).sessions.log_out(response)
    return response


async def healthy(_: Request) -> Response:
    """For probes."""
    return Response("ok", media_type="text/plain")


def local(target: str) -> str:
    """The address if it is one of ours, else an empty text."""
    plain = target.isascii() and target.isprintable() and "\\" not in target
    return target if plain and target.startswith("/") and not target.startswith("//") else ""


def _form(request: Request, target: str, problem: str = "", status: int = 200) -> Response:
    settings = state_of(request).settings
    how = "laptop" if settings.laptop else "proxy" if settings.token_header else "token"
    return render.page(request, "login.html", status, how=how, problem=problem, target=local(target))


def _name(client: Client) -> str:
    """The user's name. An API server that lacks this review still refuses a wrong token."""
    try:
        answer: dict[str, Any] = client.call("POST", REVIEWS, REVIEW)
    except ApiError as error:
        if error.status in (403, 404):
            return ""
        raise
    return str(((answer.get("status") or {}).get("userInfo") or {}).get("username") or "")
