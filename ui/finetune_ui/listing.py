"""The list of jobs: which are shown, in which order, and what each row has."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from finetune_api.curves import decode
from finetune_api.live_metrics import number
from finetune_cli import jobs
from finetune_cli.cluster.client import Object

from finetune_ui.drawing.sparkline import sparkline

PHASES = ("Pending", "Preparing", "Queued", "Starting", "Running", "Suspended", "Succeeded", "Failed")
STAGES = ("pt", "sft", "rm", "dpo", "ppo", "kto")
PAGE = 100
PLACE = re.compile(r"\(place (\d+)\)")


@dataclass(frozen=True)
class Query:
    """What a user looks for, as in the address."""

    q: str = ""
    phase: str = ""
    stage: str = ""
    sort: str = "-age"
    page: int = 1

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Query":
        """From the address; what is no choice is left out."""
        sort, page = given.get("sort", ""), given.get("page", "")
        return cls(
            q=given.get("q", "")[:200].strip(),
            phase=given.get("phase", "") if given.get("phase") in PHASES else "",
            stage=given.get("stage", "") if given.get("stage") in STAGES else "",
            sort=sort if sort.removeprefix("-") in SORTS else "-age",
            page=int(page) if page.isascii() and page.isdecimal() and int(page[:6]) > 0 else 1,
        )

    def address(self, **changes: Any) -> str:
        """The address with changes. The page begins at 1 again unless it is the change."""
        asked = {**vars(self), "page": 1, **changes}
        given = {key: value for key, value in asked.items() if value != getattr(Query, key)}
        return f"?{urlencode(given)}" if given else "?"

    def sorted_by(self, column: str) -> str:
        """The address of a column's head: sort by it, or the other way round."""
        return self.address(sort=f"-{column}" if self.sort == column else column)


@dataclass(frozen=True)
class Selection:
    """A page of the list."""

    found: list[Object]
    matching: int
    all: int
    page: int
    pages: int

    @property
    def digest(self) -> str:
        """Equal for equal pages."""
        named = [(job["metadata"]["uid"], job["metadata"].get("resourceVersion")) for job in self.found]
        return hashlib.sha256(repr((named, self.matching, self.all)).encode()).hexdigest()[:16]


def select(every: Iterable[Object], query: Query) -> Selection:
    """The jobs of the page that the query asks for. A page after the last is the last."""
    every = list(every)
    matching = [job for job in every if _matches(job, query)]
    key = SORTS[query.sort.removeprefix("-")]
    matching.sort(key=lambda job: job["metadata"]["name"])
    matching.sort(key=key, reverse=query.sort.startswith("-"))
    pages = max(1, -(-len(matching) // PAGE))
    page = min(query.page, pages)
    return Selection(matching[(page - 1) * PAGE : page * PAGE], len(matching), len(every), page, pages)


def row(job: Object) -> dict[str, Any]:
    """What a row shows."""
    status, metadata = jobs.status(job), job["metadata"]
    progress = status.get("progress") or {}
    return {
        "uid": metadata["uid"],
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "phase": jobs.phase(job),
        "reason": status.get("reason") or "",
        "stage": job["spec"]["stage"],
        "percent": progress.get("percent") if progress.get("summary") else None,
        "summary": progress.get("summary") or "",
        "eta": progress.get("eta") or "",
        "loss": loss(job),
        "sparkline": sparkline(_curve(progress)),
        "place": place(status),
        "gpu": (status.get("gpu") or {}).get("hours") or "",
        "created": metadata.get("creationTimestamp") or "",
    }


def loss(job: Object) -> str:
    """The newest loss, or that of the end."""
    status = jobs.status(job)
    return str((status.get("progress") or {}).get("loss") or (status.get("metrics") or {}).get("finalLoss") or "")


def place(status: Mapping[str, Any]) -> str:
    """The place in the queue. The operator writes it into its message."""
    found = PLACE.search(status.get("message") or "") if status.get("phase") == "Queued" else None
    return found[1] if found else ""


def _curve(progress: Mapping[str, Any]) -> list[tuple[int, float]]:
    try:
        return decode((progress.get("curves") or {})["loss"])
    except (KeyError, ValueError):
        return []


def _matches(job: Object, query: Query) -> bool:
    if (query.phase and jobs.phase(job) != query.phase) or (query.stage and job["spec"]["stage"] != query.stage):
        return False
    model = job["spec"].get("model") or {}
    words = (job["metadata"]["name"], model.get("source"), model.get("fromJob"), jobs.status(job).get("reason"))
    return query.q.casefold() in " ".join(word for word in words if word).casefold()


def _amount(job: Object, *path: str) -> float:
    value: Any = jobs.status(job)
    for part in path:
        value = (value or {}).get(part)
    found = number(value)
    return float("-inf") if found is None else found


SORTS: dict[str, Callable[[Object], Any]] = {
    "name": lambda job: job["metadata"]["name"],
    "phase": lambda job: PHASES.index(jobs.phase(job)) if jobs.phase(job) in PHASES else len(PHASES),
    "stage": lambda job: job["spec"]["stage"],
    "progress": lambda job: _amount(job, "progress", "percent"),
    "loss": lambda job: number(loss(job)) or float("-inf"),
    "gpu": lambda job: _amount(job, "gpu", "seconds"),
    "age": lambda job: str(job["metadata"].get("creationTimestamp")),
}
"""Column -> what jobs are sorted by."""
