"""Prints the logs of a job: what exists, or everything until the job ends."""

import heapq
import http.client
import itertools
import queue
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from finetune_cli import jobs, paths
from finetune_cli.cluster.client import Client, Object
from finetune_cli.logs import pods, reader
from finetune_cli.problem import Exit, Problem

HELD_LINES = 2000
"""Lines that wait to be printed. A log that comes faster than the terminal takes it waits in the cluster."""

Wanted = Callable[[Object], bool]
Emit = Callable[[str, reader.Line], None]
"""Takes a line and what stands before it."""


def existing(client: Client, job: Object, wanted: Wanted, query: dict[str, Any], emit: Emit) -> int:
    """Print what the pods have written so far: attempt by attempt, the ranks of an attempt by the time of their lines.
    Returns the number of pods."""
    found = [pod for pod in pods.of_job(client, job) if reader.started(pod) and wanted(pod)]
    for _, group in itertools.groupby(found, key=lambda pod: pods.order(pod)[:2]):
        streams = [_stamped(client.another(), pod, query) for pod in group]
        for _, _, head, line in heapq.merge(*streams):
            emit(head, line)
    return len(found)


def _stamped(client: Client, pod: Object, query: dict[str, Any]) -> Iterator[tuple[str, str, str, reader.Line]]:
    head, latest = pods.prefix(pod), ""
    for line in reader.lines(client, pod, follow=False, query=query):
        latest = max(latest, line.stamp)  # a line that continues another stays behind it
        yield latest, pod["metadata"]["name"], head, line


def until_the_end(client: Client, job: Object, wanted: Wanted, query: dict[str, Any], emit: Emit) -> Object:
    """Print the lines of all pods as they come, those of later attempts too. Returns the job when it has ended and all
    lines are printed."""
    inbox: queue.Queue[tuple[str, Any]] = queue.Queue(HELD_LINES)
    reading: set[str] = set()
    """uids of the pods whose log is read, or was."""
    active = 0

    def begin(pod: Object) -> int:
        uid = pod["metadata"]["uid"]
        if uid in reading or not reader.started(pod) or not wanted(pod) or not pods.belongs(pod, job):
            return 0
        reading.add(uid)
        reader.in_thread(f"log of {pod['metadata']['name']}", _read, client.another(), pod, query, inbox)
        return 1

    reader.in_thread("pods", _watch_pods, client.another(), job, inbox)
    reader.in_thread("job", _watch_job, client.another(), job["metadata"]["name"], inbox)
    final: Object | None = None
    while final is None or active:
        what, value = inbox.get()
        if what == "line":
            head, line = value
            emit(head, line)
            if inbox.empty():
                sys.stdout.flush()
        elif what == "pod":
            active += begin(value)
        elif what == "done":
            active -= 1
        elif what == "error":
            raise value
        elif what == "job" and final is None:
            final = value
            # The watch of the pods may be behind: what exists at the end is looked up once more.
            active += sum(begin(pod) for pod in _patiently(lambda: iter(pods.of_job(client, job))))
    return final


def _read(client: Client, pod: Object, query: dict[str, Any], inbox: "queue.Queue[tuple[str, Any]]") -> None:
    head = pods.prefix(pod)
    try:
        for line in reader.lines(client, pod, follow=True, query=query):
            inbox.put(("line", (head, line)))
        inbox.put(("done", pod))
    except Exception as error:
        inbox.put(("error", error))


def _watch_job(client: Client, name: str, inbox: "queue.Queue[tuple[str, Any]]") -> None:
    try:
        for job in _patiently(lambda: jobs.follow(client, name)):
            if jobs.ended(job):
                inbox.put(("job", job))
                return
    except Exception as error:
        inbox.put(("error", error))


def _watch_pods(client: Client, job: Object, inbox: "queue.Queue[tuple[str, Any]]") -> None:
    path = paths.pods(job["metadata"]["namespace"])
    selector = f"{paths.LABEL_JOB}={job['metadata']['name']}"

    def events() -> Iterator[Object]:
        while True:
            listed = client.get(path, labelSelector=selector)
            yield from listed.get("items") or ()
            version = listed["metadata"]["resourceVersion"]
            for event in client.watch(path, labelSelector=selector, resourceVersion=version):
                if event["type"] == "ERROR":
                    break
                yield event["object"]

    try:
        for pod in _patiently(events):
            inbox.put(("pod", pod))
    except Exception as error:
        inbox.put(("error", error))


def _patiently(begin: Callable[[], Iterator[Object]]) -> Iterator[Object]:
    """The events, through restarts of the API server."""
    while True:
        try:
            yield from begin()
            return
        except Problem as problem:
            if problem.code is not Exit.UNREACHABLE:
                raise
        except (OSError, http.client.HTTPException, ValueError):
            pass
        time.sleep(reader.PAUSE_SECONDS)


def printer(stamps: bool) -> Emit:
    """Prints lines, with their times if they are wanted."""

    def emit(head: str, line: reader.Line) -> None:
        stamp = f"{line.stamp} " if stamps and line.stamp else ""
        sys.stdout.write(f"{head} | {stamp}{line.text}\n")

    return emit
