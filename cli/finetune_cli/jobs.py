"""FineTuneJobs: read, changed, and followed until they end."""

import http.client
import time
from collections.abc import Iterator
from typing import Any

from finetune_cli import paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.cluster.errors import ApiError
from finetune_cli.problem import Exit, Problem

FINAL = ("Succeeded", "Failed")
GONE = 410
WAIT_SECONDS = 2.0


def get(client: Client, name: str) -> Object:
    """A job. Raises Problem if it does not exist."""
    return client.get(paths.jobs(client.namespace, name))


def all_of(client: Client, everywhere: bool = False, labels: str = "") -> list[Object]:
    """The jobs of the namespace, or of all, oldest first."""
    listed = client.items(paths.jobs(None if everywhere else client.namespace), labelSelector=labels)
    return sorted(listed, key=lambda job: (job["metadata"]["creationTimestamp"], job["metadata"]["name"]))


def status(job: Object) -> dict[str, Any]:
    """The status, never None."""
    return job.get("status") or {}


def phase(job: Object) -> str:
    """The phase; that of a job which nobody has looked at is Pending."""
    return str(status(job).get("phase") or "Pending")


def queue(job: Object) -> str:
    """The queue of the training pods, which the job names or the presets of its namespace; empty without one."""
    presets = (status(job).get("resolved") or {}).get("presets") or {}
    return str(job["spec"].get("queue") or (presets.get("filled") or {}).get("queue") or "")


def ended(job: Object) -> bool:
    """Whether the job has ended, and no change of its spec is waiting to be seen."""
    seen = status(job).get("observedGeneration", 0)
    return phase(job) in FINAL and seen >= job["metadata"].get("generation", 0)


def changes(client: Client, name: str | None = None, everywhere: bool = False) -> Iterator[tuple[str, Object]]:
    """(ADDED, MODIFIED or DELETED; the job), for ever: first all that exist, then each change. An API server that
    restarts is waited for; a watch that is too old begins again."""
    path = paths.jobs(None if everywhere else client.namespace)
    query = {"fieldSelector": f"metadata.name={name}"} if name else {}
    known: set[str] = set()
    first = True
    while True:
        try:
            listed = client.get(path, **query)
        except Problem as problem:
            if first or problem.code is not Exit.UNREACHABLE:
                raise
            time.sleep(WAIT_SECONDS)
            continue
        first = False
        found = {job["metadata"]["uid"]: job for job in listed.get("items") or ()}
        for uid in known - set(found):
            yield "DELETED", {"metadata": {"uid": uid}}
        known = set(found)
        for job in found.values():
            yield "ADDED", job
        version = listed["metadata"]["resourceVersion"]
        while version:
            try:
                for event in client.watch(path, resourceVersion=version, allowWatchBookmarks="true", **query):
                    if event["type"] == "ERROR":
                        version = ""
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] == "BOOKMARK":
                        continue
                    uid = event["object"]["metadata"]["uid"]
                    (known.discard if event["type"] == "DELETED" else known.add)(uid)
                    yield event["type"], event["object"]
            except ApiError as error:
                if error.status != GONE and error.code is not Exit.UNREACHABLE:
                    raise
                version = ""
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(WAIT_SECONDS)
                version = ""


def follow(client: Client, name: str) -> Iterator[Object]:
    """The job with each change, until it has ended. Raises Problem if it is deleted meanwhile."""
    get(client, name)
    for kind, job in changes(client, name):
        if kind == "DELETED":
            raise Problem(f"Somebody has deleted the FineTuneJob {name}.", Exit.NOT_FOUND)
        yield job
        if ended(job):
            return
