"""The estimate of memory beside *Check*: of a job that has been prepared with these settings, or by a pod."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from finetune_cli import estimates, paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.workspace import estimate as pods
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from finetune_ui import render
from finetune_ui.fetches import PATIENCE_SECONDS, Fetch
from finetune_ui.guard import state_of
from finetune_ui.session import User
from finetune_ui.texts import text


async def estimate_part(request: Request, user: User) -> Response:
    """The estimate, or that it is on its way."""
    state, namespace, name = state_of(request), request.path_params["namespace"], request.path_params["name"]
    await state.kube.get(user, paths.jobs(namespace), limit=1)
    fetch = state.fetches.find(user, _about(namespace, name))
    return HTMLResponse(render.fragment("estimate.html", **values(namespace, name, fetch)))


async def beside_check(request: Request, user: User, job: Object, every: Sequence[Object], start: bool) -> str:
    """The part below a job that the API server accepts. `job` has the server's defaults. `start`: begin to estimate."""
    state, namespace = state_of(request), request.path_params["namespace"]
    wanted = {"spec": job["spec"], "metadata": {"name": job["metadata"]["name"], "namespace": namespace}}
    name = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    may = "create pods" in await state.rights.of(state.kube, user, namespace)
    about, fetch = _about(namespace, name), None
    if start:
        document = {**wanted, "apiVersion": job["apiVersion"], "kind": job["kind"]}
        release = state.settings.trainer_image
        fetch = state.fetches.start(user, namespace, about, lambda client: _table(client, document, every, release))
    fetch = fetch or state.fetches.find(user, about)
    known = estimates.known(job, every)
    given = values(namespace, name, fetch) | {"may": may, "known": _known(*known) if known else ""}
    return render.fragment("estimate.html", **given)


def values(namespace: str, name: str, fetch: Fetch | None) -> dict[str, Any]:
    """What the template shows."""
    return {"namespace": namespace, "name": name, "fetch": fetch, "may": True, "known": ""}


def _known(name: str, size: int) -> str:
    return text("estimate.known", name=name, size=_gib(size))


def _about(namespace: str, name: str) -> str:
    return f"estimate {namespace} {name}"


def _table(client: Client, job: Object, every: Sequence[Object], release: str) -> dict[str, Any]:
    """What the trainer says, as the page shows it."""
    own, method = estimates.gpus_of(job), job["spec"].get("tuning", {}).get("method", "lora")
    image = pods.image_for(job, every, release)
    found = pods.in_cluster(client, job, every, sorted({*estimates.GPUS, own}), image, PATIENCE_SECONDS)
    parallelism = job["spec"].get("training", {}).get("parallelism", "ddp")
    sizes = {(row["method"], row["gpus"]): row for row in found}
    this = sizes.get((method, own))
    # Another number of GPUs is estimated with another parallelism than that of the job.
    fits = this is not None and (own == 1 or this["parallelism"] == parallelism)
    numbers, rows = estimates.table(found)
    return {
        "numbers": numbers,
        "rows": rows,
        "length": estimates.length_of(job),
        "own": text("estimate.own", method=method, gpus=own, size=_gib(this["bytes"])) if this and fits else "",
    }


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
