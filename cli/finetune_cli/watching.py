"""`finetune watch`: follows one job until it ends, or all jobs."""

import threading
import time
from typing import Any

from finetune_cli import clock, jobs
from finetune_cli.cluster.client import Client
from finetune_cli.problem import Exit, Problem
from finetune_cli.progress import Display
from finetune_cli.why import paragraph

TICK_SECONDS = 1.0


def one(client: Client, name: str, timeout: float = 0) -> int:
    """Show a job until it ends; returns the exit code."""
    final: list[dict[str, Any]] = []
    _show(client, name, False, timeout, final)
    job = final[-1]
    print(paragraph(job, clock.now()))
    return Exit.DONE if jobs.phase(job) == "Succeeded" else Exit.FAILED


def every(client: Client, everywhere: bool, timeout: float = 0) -> None:
    """Show all jobs, for ever or until the time is over."""
    try:
        _show(client, None, everywhere, timeout, [])
    except Problem as problem:
        if problem.code is not Exit.TIMEOUT:
            raise


def _show(client: Client, name: str | None, everywhere: bool, timeout: float, final: list[dict[str, Any]]) -> None:
    display, found = Display(), dict[str, dict[str, Any]]()
    lock, over, failure = threading.Lock(), threading.Event(), list[BaseException]()

    def read() -> None:
        try:
            if name:
                for job in jobs.follow(client, name):
                    with lock:
                        found[job["metadata"]["uid"]] = job
                        final.append(job)
                        del final[:-1]
            else:
                for kind, job in jobs.changes(client, None, everywhere):
                    with lock:
                        if kind == "DELETED":
                            found.pop(job["metadata"]["uid"], None)
                        else:
                            found[job["metadata"]["uid"]] = job
        except BaseException as error:
            failure.append(error)
        over.set()

    threading.Thread(target=read, name="jobs", daemon=True).start()
    end = time.monotonic() + timeout if timeout else float("inf")
    while not over.wait(min(TICK_SECONDS, max(0.0, end - time.monotonic()))):
        with lock:
            display.show(found)
        if time.monotonic() >= end:
            raise Problem(f"The {timeout:g} seconds of --timeout are over.", Exit.TIMEOUT)
    display.show(found, final=True)
    if failure:
        raise failure[0]
