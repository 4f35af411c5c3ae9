"""Prepare's reports, fetched by a pod that the user asks for. This takes longer than a request, so pages ask again."""

import threading
import time
from dataclasses import dataclass

from finetune_cli.cluster.client import Client, Object
from finetune_cli.problem import Problem
from finetune_cli.workspace.report import data_report

from finetune_ui.session import User

PATIENCE_SECONDS = 600.0
KEPT_SECONDS = 600.0
AT_ONCE = 20
"""Reports that are fetched at the same time, of all users together."""


@dataclass
class Fetch:
    """A report that a pod reads, or has read."""

    client: Client
    began: float
    text: str | None = None
    problem: str | None = None

    @property
    def over(self) -> bool:
        """Whether the answer is there."""
        return self.text is not None or self.problem is not None


class Reports:
    """The reports of all users. Each is known by its user and the uid of its job, so nobody gets that of another."""

    def __init__(self) -> None:
        self._fetches: dict[tuple[str, str], Fetch] = {}

    def find(self, user: User, job: Object) -> Fetch | None:
        """The report that this user asked for."""
        oldest = time.monotonic() - KEPT_SECONDS
        self._fetches = {key: each for key, each in self._fetches.items() if not each.over or each.began >= oldest}
        return self._fetches.get((user.key, job["metadata"]["uid"]))

    def start(self, user: User, job: Object) -> Fetch:
        """Begin to fetch, unless a pod does so already. Raises Problem if too many do."""
        found = self.find(user, job)
        if found is not None and not found.over:
            return found
        if sum(not each.over for each in self._fetches.values()) >= AT_ONCE:
            raise Problem("Many reports are being fetched. Try again in some minutes.")
        fetch = Fetch(user.client(job["metadata"]["namespace"]), time.monotonic())
        self._fetches[user.key, job["metadata"]["uid"]] = fetch
        threading.Thread(target=_run, args=(fetch, job), name="report", daemon=True).start()
        return fetch

    def close(self) -> None:
        """Interrupt all. The pods end by themselves."""
        for fetch in self._fetches.values():
            if not fetch.over:
                fetch.client.interrupt()


def _run(fetch: Fetch, job: Object) -> None:
    try:
        fetch.text = data_report(fetch.client, job, "text", None, PATIENCE_SECONDS)
    except Problem as problem:
        fetch.problem = str(problem)
    except Exception as error:  # the page that waits would wait for ever
        fetch.problem = f"The report could not be read: {type(error).__name__}"
        raise
    finally:
        fetch.client.close()
