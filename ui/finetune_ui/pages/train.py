"""The form that creates a job: a new job, a clone of another job, or what a text says."""

from typing import Any

from finetune_cli import jobs, manifest
from finetune_cli.cluster.client import Object
from finetune_cli.cluster.errors import ApiError
from finetune_cli.problem import Exit, Problem
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from finetune_ui import form, names, render
from finetune_ui.guard import state_of
from finetune_ui.pages import estimate
from finetune_ui.session import User
from finetune_ui.texts import text


async def train_page(request: Request, user: User) -> Response:
    """The form with a new job, or with that of `?clone=`."""
    known, original = _names(request, await _jobs(request, user)), request.query_params.get("clone", "")
    if original and not names.is_name(original):
        raise HTTPException(404)
    if original:
        found = await state_of(request).kube.call(user, request.path_params["namespace"], jobs.get, original)
        return _page(request, known, form.values(form.clone(found)))
    return _page(request, known, form.values(form.new()))


async def train_change(request: Request, user: User, sent: FormData) -> Response:
    """What the pressed button asks for. Only *Create* and *Estimate* create anything in the cluster."""
    every = await _jobs(request, user)
    known, posted = _names(request, every), [(name, str(value)) for name, value in sent.multi_items()]
    button = form.pressed(posted)
    if button in ("load", "import"):
        return _loaded(request, known, str(sent.get("text", "")), button)
    values, wrong = form.typed(posted), form.mistakes(posted)
    if form.only_changes(posted) or wrong != form.NO_ERRORS:
        return _page(request, known, values, form.NO_ERRORS if form.only_changes(posted) else wrong)
    job = form.manifest(posted)
    if button not in ("check", "estimate", "create"):
        return _page(request, known, values, preview=form.save(job))
    namespace = request.path_params["namespace"]
    job = {**job, "metadata": {**job.get("metadata", {}), "namespace": namespace}}
    try:
        made = await state_of(request).kube.call(user, namespace, manifest.create, job, button != "create")
    except ApiError as error:
        if error.code is not Exit.REFUSED:
            raise
        return _page(request, known, values, form.errors(error.details))
    if button != "create":
        memory = await estimate.beside_check(request, user, made, every, button == "estimate")
        return _page(request, known, values, message=text("train.accepted"), memory=memory)
    return RedirectResponse(f"/ns/{namespace}/jobs/{job['metadata']['name']}", 303)


def _loaded(request: Request, known: dict[str, list[str]], given: str, how: str) -> Response:
    """The form with the job of a text; or with a new job, and the text with what is wrong with it."""
    try:
        imported = form.import_llamafactory(given) if how == "import" else None
        values = form.values(imported.job if imported else form.load(given))
    except Problem as problem:
        return _page(request, known, form.values(form.new()), load={"text": given, "problem": str(problem)})
    return _page(request, known, values, load={"text": given, "notes": imported.notes if imported else ()})


async def _jobs(request: Request, user: User) -> list[Object]:
    return await state_of(request).kube.call(user, request.path_params["namespace"], jobs.all_of)


def _names(request: Request, every: list[Object]) -> dict[str, list[str]]:
    """Names that the form suggests."""
    found = sorted(job["metadata"]["name"] for job in every)
    return {"namespaces": [request.path_params["namespace"]], "jobs": found}


def _page(
    request: Request,
    known: dict[str, list[str]],
    values: dict[str, str],
    errors: form.Errors = form.NO_ERRORS,
    *,
    message: str = "",
    preview: str = "",
    memory: str = "",
    load: dict[str, Any] | None = None,
) -> Response:
    csrf, namespace = state_of(request).sessions.form_token(request), request.path_params["namespace"]
    action = f"/ns/{namespace}/train"
    return render.page(
        request,
        "train.html",
        form=form.render(values, errors, csrf, action=action, namespace=namespace, names=known),
        load=form.render_load(csrf, action=action, **(load or {})),
        message=message,
        preview=preview,
        memory=memory,
    )
