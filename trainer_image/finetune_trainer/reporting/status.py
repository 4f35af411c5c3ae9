"""Live status: what the trainer owns of its job's status, kept in a file and applied to the API server.

Two writers that never fight: rank 0 (`Reporter`, progress and checkpoint while training) and ``launch``
(`apply_result`, at the end). Both apply everything that the trainer owns, since server-side apply removes what an apply
leaves out; the file ``reports/status.json`` is how one knows what the other last said, and how an attempt knows the
checkpoint that the attempt before it reported.
"""

import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Condition, Lock, Thread
from typing import Any

from finetune_api.contract import AttemptFacts
from finetune_api.status import Checkpoint, Progress, Result

from finetune_trainer import hostmemory
from finetune_trainer.reporting.api import SUPERSEDED, TIMEOUT, Answer, ApiServer, within
from finetune_trainer.workspace import write_json

FILE = "status.json"
RESULT_BUDGET = 8.0
"""Seconds that `launch` may spend on the final write: it has 15 between the end of the ranks and the pod's end."""
RESULT_PAUSE = 0.5

log = logging.getLogger(__name__)


def read_status(reports: Path, uid: str) -> dict[str, Any]:
    """What runs of this CR last said: progress and checkpoint, as far as there are any."""
    try:
        content = json.loads((reports / FILE).read_bytes())
        return dict(content["status"]) if content["uid"] == uid else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


class Reporter:
    """Rank 0's line to the outside. Every method returns at once and never raises.

    A thread writes the newest values at once and then every `interval` seconds; what came in between is skipped. Where
    nothing came, as in a long step, progress is said again with the time of now, which shows that the run is alive.
    `on_superseded` is called from that thread, once, when the API server says that another run does this job.
    """

    def __init__(
        self,
        api: ApiServer | None,
        facts: AttemptFacts,
        reports: Path,
        interval: float,
        on_superseded: Callable[[str], None],
    ) -> None:
        self._api, self._facts, self._reports = api, facts, reports
        self._interval, self._on_superseded = interval, on_superseded
        self._status = read_status(reports, facts.uid)
        self._news = False
        self._progressing = False
        """Whether this run has said anything yet: an earlier one's progress isn't a sign of its life."""
        self._memory = 0
        """The most that was seen in use: what a pod that was killed for its memory is told with."""
        self._closed = False
        self._reachable = True
        self._changed = Condition()
        self._file = Lock()
        self._thread = Thread(target=self._work, name="status", daemon=True)
        self._thread.start()

    def progress(self, progress: Progress) -> None:
        """Report where training is."""
        self._memory = max(self._memory, hostmemory.in_use() or 0)
        used = progress.model_copy(update={"memory_bytes": self._memory or None})
        self._put("progress", used.to_dict())

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Report the newest checkpoint. How long saving takes, which grace periods are made by, stays known where one
        of an earlier run is told of."""
        known = {name: said for name, said in self._status.get("checkpoint", {}).items() if name == "seconds"}
        self._put("checkpoint", {**known, **checkpoint.to_dict()})

    def close(self) -> None:
        """Leave the newest values in the file, for `launch` to apply with the result. Waits for no API server."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._keep()

    def _keep(self) -> None:
        with self._file:
            try:
                write_json(self._reports / FILE, {"uid": self._facts.uid, "status": self._status})
            except OSError as error:
                log.warning("%s can't be written: %s", self._reports / FILE, error)

    def _put(self, field: str, value: dict[str, Any]) -> None:
        with self._changed:
            self._status = {**self._status, field: value}
            self._news = True
            self._progressing |= field == "progress"
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._progressing or self._closed)
                if self._closed:
                    return
                if not self._news:
                    self._status = {**self._status, "progress": _as_of_now(self._status["progress"])}
                status, self._news = self._status, False
            try:
                self._keep()
                self._apply(status)
            except Exception:
                # Nothing in here is worth a training run.
                log.warning("Status could not be written", exc_info=True)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, self._interval)

    def _apply(self, status: dict[str, Any]) -> None:
        if self._api is None:
            return
        answer, said = self._api.apply(self._facts, status)
        if answer in SUPERSEDED:
            self._on_superseded(f"{answer.value}: {said}")
        reachable = answer in (Answer.ACCEPTED, Answer.DELETING)
        if reachable != self._reachable:
            log.warning("Status is written again" if reachable else f"Status isn't written, training goes on: {said}")
        self._reachable = reachable


def _as_of_now(progress: dict[str, Any]) -> dict[str, Any]:
    return {**progress, "lastUpdateTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


def ask(api: ApiServer | None, facts: AttemptFacts, reports: Path, seconds: float) -> Answer:
    """Apply what was last said, to learn whether anybody still wants the result. Takes `seconds` at most, and never
    more than TIMEOUT."""
    if api is None:
        return Answer.UNREACHABLE
    status = read_status(reports, facts.uid)
    answer, _ = within(min(seconds, TIMEOUT), lambda: api.apply(facts, status), (Answer.UNREACHABLE, ""))
    return answer


def apply_result(api: ApiServer | None, facts: AttemptFacts, reports: Path, result: Result) -> None:
    """The last write: the result beside what was last said. Tried again for some seconds, then left to the
    termination message."""
    if api is None:
        return
    status = {**read_status(reports, facts.uid), "result": result.to_dict()}
    answer, said = within(RESULT_BUDGET, lambda: _persist(api, facts, status), (Answer.UNREACHABLE, "no answer"))
    if answer not in (Answer.ACCEPTED, Answer.DELETING):
        log.warning("The result could not be written to the job's status (%s %s)", answer.value, said)


def _persist(api: ApiServer, facts: AttemptFacts, status: dict[str, Any]) -> tuple[Answer, str]:
    end = time.monotonic() + RESULT_BUDGET
    while True:
        answer, said = api.apply(facts, status, min(TIMEOUT, max(0.1, end - time.monotonic())))
        if answer is not Answer.UNREACHABLE or time.monotonic() + RESULT_PAUSE >= end:
            return answer, said
        time.sleep(RESULT_PAUSE)
