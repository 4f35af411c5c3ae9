"""The log of one container, from its first line until the container has ended."""

import http.client
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from finetune_cli import paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.cluster.errors import ApiError
from finetune_cli.logs.place import Place
from finetune_cli.problem import Exit, Problem

PAUSE_SECONDS = 1.0


class Line(NamedTuple):
    """A line of a log. `stamp` is empty if the line continues the one before."""

    stamp: str
    text: str


def lines(client: Client, pod: Object, *, follow: bool, query: dict[str, Any] | None = None) -> Iterator[Line]:
    """The lines of the trainer's container of a pod that has started. With `follow`, until the container has ended,
    whatever happens to connections meanwhile. Raises ApiError if the log may not be read."""
    place = Place()
    path = f"{paths.pods(pod['metadata']['namespace'], pod['metadata']['name'])}/log"
    asked = dict(query or {})
    last = False
    while True:
        since = place.reopen()
        fresh = since is None and not last
        try:
            options = {**(asked if since is None else {}), "sinceTime": since}
            for raw in client.stream(
                path, container=paths.CONTAINER, timestamps="true", follow=follow and not last and "true", **options
            ):
                line = parse(raw)
                if line is None:
                    continue
                if line.stamp:  # a line without a time continues the line before it
                    fresh = place.is_new(line.stamp)
                if fresh:
                    yield line
            if last or not follow:
                return
            # What was read until a container ended may lack its end: one more reading is sure to have it.
            last = _ended(client, pod)
            if not last:
                time.sleep(PAUSE_SECONDS)
        except Problem as problem:
            status = problem.status if isinstance(problem, ApiError) else 0
            if status == 404:
                return
            if problem.code is not Exit.UNREACHABLE and status != 400:  # 400: the container does not run yet
                raise
            time.sleep(PAUSE_SECONDS)
        except (OSError, http.client.HTTPException):
            if not follow and since is not None:
                raise
            time.sleep(PAUSE_SECONDS)


def parse(raw: bytes) -> Line | None:
    """A line with its time before it. None for an empty line without a time."""
    text = raw.decode(errors="replace").rstrip("\r\n")
    stamp, _, rest = text.partition(" ")
    if len(stamp) > 19 and stamp[:4].isdecimal() and stamp[10] == "T":
        return Line(stamp, rest)
    return Line("", text) if text else None


def started(pod: Object) -> bool:
    """Whether the trainer's container has written, or may have written, a log."""
    state = _state(pod)
    return bool(state.get("running") or state.get("terminated"))


def ended(pod: Object) -> bool:
    """Whether the trainer's container has ended."""
    return bool(_state(pod).get("terminated")) or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _ended(client: Client, pod: Object) -> bool:
    found = client.find(paths.pods(pod["metadata"]["namespace"], pod["metadata"]["name"]))
    return found is None or found["metadata"]["uid"] != pod["metadata"]["uid"] or ended(found)


def _state(pod: Object) -> dict[str, Any]:
    for each in (pod.get("status") or {}).get("containerStatuses") or ():
        if each["name"] == paths.CONTAINER:
            return each.get("state") or {}
    return {}


def in_thread(name: str, target: Any, *arguments: Any) -> None:
    """Run in a thread that ends with the program."""
    threading.Thread(target=target, args=arguments, name=name, daemon=True).start()
