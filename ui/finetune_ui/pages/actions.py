"""What a user asks of a job that exists. The changes are those of the command line."""

from collections.abc import Callable

from finetune_cli import actions, jobs, paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.problem import Exit, Problem
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from finetune_ui import render
from finetune_ui.buttons import CONFIRMED
from finetune_ui.guard import is_part, state_of
from finetune_ui.session import User
from finetune_ui.texts import text

Action = Callable[[Client, Object], str]


def delete(client: Client, job: Object) -> str:
    """Delete this job, and no other job of its name."""
    metadata = job["metadata"]
    options = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
    client.call("DELETE", paths.jobs(metadata["namespace"], metadata["name"]), options)
    return ""


ACTIONS: dict[str, Action] = {
    "suspend": actions.suspend,
    "resume": actions.resume,
    "retry": actions.retry,
    "stop": actions.stop,
    "delete": delete,
}


async def job_confirm(request: Request, user: User) -> Response:
    """The question before what cannot be taken back."""
    namespace, name, verb = (request.path_params[key] for key in ("namespace", "name", "verb"))
    if verb not in CONFIRMED:
        raise HTTPException(404)
    job = await state_of(request).kube.call(user, namespace, jobs.get, name)
    return render.page(request, "confirm.html", name=name, verb=verb, uid=job["metadata"]["uid"])


async def job_act(request: Request, user: User, form: FormData) -> Response:
    """Do it."""
    namespace, name, verb = (request.path_params[key] for key in ("namespace", "name", "verb"))
    if verb not in ACTIONS:
        raise HTTPException(404)
    what = await state_of(request).kube.call(user, namespace, _act, name, str(form.get("uid", "")), ACTIONS[verb])
    if is_part(request):
        message = text("actions.done", name=name, what=what) if what else text("actions.deleted", name=name)
        return HTMLResponse(render.fragment("message.html", message=message, bad=False))
    return RedirectResponse(f"/ns/{namespace}/jobs" + ("" if verb == "delete" else f"/{name}"), 303)


def _act(client: Client, name: str, uid: str, action: Action) -> str:
    job = jobs.get(client, name)
    if job["metadata"]["uid"] != uid:
        raise Problem(text("actions.other"), Exit.REFUSED)
    return action(client, job)
