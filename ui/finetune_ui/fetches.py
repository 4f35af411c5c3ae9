"""What pods find out for users: reports and estimates. This takes longer than a request, so pages ask again."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_cli.cluster.client import Client
from finetune_cli.problem import Problem

from finetune_ui.session import User
from finetune_ui.texts import text

PATIENCE_SECONDS = 600.0
"""How long a pod may take to start."""
KEPT_SECONDS = 600.0
AT_ONCE = 20
"""Pods that run at the same time, for all users together."""

Work = Callable[[Client], Any]


@dataclass
class Fetch:
    """What a pod finds out, or has found out."""

    client: Client
    began: float
    result: Any = None
    problem: str | None = None

    @property
    def over(self) -> bool:
        """Whether the answer is there."""
        return self.result is not None or self.problem is not None


class Fetches:
    """The answers for all users. Each is known by its user and by what it is about, so nobody gets that of another."""

    def __init__(self) -> None:
        self._fetches: dict[tuple[str, str], Fetch] = {}

    def find(self, user: User, about: str) -> Fetch | None:
        """What this user asked for."""
        oldest = time.monotonic() - KEPT_SECONDS
        self._fetches = {key: each for key, each in self._fetches.items() if not each.over or each.began >= oldest}
        return self._fetches.get((user.key, about))

    def start(self, user: User, namespace: str, about: str, work: Work) -> Fetch:
        """Begin, unless a pod is at it already. `work` may take long. Raises Problem if too many pods run."""
        found = self.find(user, about)
        if found is not None and not found.over:
            return found
        if sum(not each.over for each in self._fetches.values()) >= AT_ONCE:
            raise Problem(text("errors.busy"))
        fetch = Fetch(user.client(namespace), time.monotonic())
        self._fetches[user.key, about] = fetch
        threading.Thread(target=_run, args=(fetch, work), name="fetch", daemon=True).start()
        return fetch

    def close(self) -> None:
        """Interrupt all. The pods end by themselves."""
        for fetch in self._fetches.values():
            if not fetch.over:
                fetch.client.interrupt()


def _run(fetch: Fetch, work: Work) -> None:
    try:
        fetch.result = work(fetch.client)
    except Problem as problem:
        fetch.problem = str(problem)
    except Exception as error:  # the page that waits would wait for ever
        fetch.problem = text("errors.pod", error=type(error).__name__)
        raise
    finally:
        fetch.client.close()
