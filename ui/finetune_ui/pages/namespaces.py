"""The choice of a namespace: those that the user may list, or any whose name they know."""

from finetune_cli import paths
from finetune_cli.cluster.client import Client
from finetune_cli.cluster.errors import ApiError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from finetune_ui import render
from finetune_ui.guard import state_of
from finetune_ui.names import is_name
from finetune_ui.session import User


async def home(request: Request, user: User) -> Response:
    """The choice. On a laptop, the kubeconfig has chosen."""
    state = state_of(request)
    if state.settings.laptop and "choose" not in request.query_params:
        return RedirectResponse(f"/ns/{state.settings.server.namespace}/jobs", 303)
    found = await state.kube.call(user, "", _listed)
    offered = sorted(found) if found is not None else list(state.settings.namespaces)
    return render.page(request, "namespaces.html", offered=offered, denied=found is None)


async def choose(request: Request, _: User) -> Response:
    """From a form to an address that can be shared."""
    namespace = request.query_params.get("namespace", "").strip()
    return RedirectResponse(f"/ns/{namespace}/jobs" if is_name(namespace) else "/?choose=1", 303)


def _listed(client: Client) -> list[str] | None:
    """None if the user may not list namespaces."""
    try:
        return [each["metadata"]["name"] for each in client.items(paths.core("namespaces"))]
    except ApiError as error:
        if error.status == 403:
            return None
        raise
