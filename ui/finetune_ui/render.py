"""Pages and fragments from templates. Everything that a template is given is escaped."""

from functools import cache
from typing import TYPE_CHECKING, Any

from finetune_cli import clock
from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse

from finetune_ui import markup
from finetune_ui.texts import LANGUAGE, text

if TYPE_CHECKING:
    from finetune_ui.state import State


@cache
def environment() -> Environment:
    """The templates of pages."""
    return markup.environment(t=text, language=LANGUAGE, ago=ago)


def ago(time: str | None) -> str:
    """How long ago a time was; empty without a time."""
    return clock.since(time, clock.now())


def fragment(template: str, **values: Any) -> str:
    """A part of a page."""
    return environment().get_template(template).render(**values)


def macro(template: str, name: str, *arguments: Any) -> str:
    """A part that a template defines as a macro."""
    return str(getattr(environment().get_template(template).module, name)(*arguments))


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A whole page."""
    state: State = request.app.state.ui
    user = getattr(request.state, "user", None)
    common = {
        "csrf": state.sessions.form_token(request),
        "user": user,
        "namespace": request.path_params.get("namespace", ""),
        "can_log_out": user is not None and not state.settings.token_header,
    }
    content = fragment(template, **{**common, **values})
    response = HTMLResponse(content, status)
    state.sessions.remember(request, response)
    return response
