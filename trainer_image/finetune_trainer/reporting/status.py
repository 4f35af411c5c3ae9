"""Live status: the fields of status that the trainer owns, saved in a file and applied to the API server.

There are two writers, one after the other: rank 0 (`Reporter`: progress and checkpoint during the run) and the launcher
(`report_restart` before it starts the ranks again, `apply_result` at the end). Both apply all fields that the trainer
owns, because a server-side apply removes the fields that it lacks. Through the file ``reports/status.json`` the
launcher knows what rank 0 reported last, and an attempt knows the checkpoint that the previous attempt reported.
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
from finetune_api.status import Checkpoint, Progress, Restart, Result

from finetune_trainer.reporting.api import FOR_NOW, SUPERSEDED, TIMEOUT, WRITTEN, Answer, ApiServer, call_with_timeout
from finetune_trainer.runtime import heartbeat, hostmemory
from finetune_trainer.runtime.uses import Account
from finetune_trainer.workspace.files import write_json

FILE = "status.json"
RESULT_BUDGET = 8.0
"""Seconds for the launcher's final write. It has 15 between the end of the ranks and the end of the pod."""
RESULT_PAUSE = 0.5
"""Seconds between two attempts at the final write."""

log = logging.getLogger(__name__)


def read_status(reports: Path, uid: str) -> dict[str, Any]:
    """The fields that runs of this job (by uid) reported last: progress and checkpoint, if any."""
    try:
        content = json.loads((reports / FILE).read_bytes())
        return dict(content["status"]) if content["uid"] == uid else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def read_furthest(reports: Path, uid: str) -> int:
    """The newest step that a run of this job (by uid) has reported; 0 if none has. Steps up to it are done again by a
    run that resumes before it."""
    try:
        content = json.loads((reports / FILE).read_bytes())
        return max(0, int(content.get("furthest", 0))) if content["uid"] == uid else 0
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return 0


class Reporter:
    """Reports for rank 0. Every method returns at once and never raises.

    A thread applies the newest values, at most every ``interval`` seconds; values in between are skipped. Without new
    values, as in a long step, it applies progress again with the time of now, to show that the run is alive. The thread
    calls ``on_superseded`` once when the API server answers that another run does this job.
    """

    def __init__(
        self,
        api: ApiServer | None,
        attempt: AttemptFacts,
        reports: Path,
        interval: float,
        on_superseded: Callable[[str], None],
        restart: Restart | None = None,
    ) -> None:
        self._api, self._attempt, self._reports, self._restart = api, attempt, reports, restart
        self._interval, self._on_superseded = interval, on_superseded
        self._status = read_status(reports, attempt.uid)
        self._has_changes = False
        self._has_progress = False
        """Whether this run has reported progress: that of an earlier run shows nothing about this run."""
        self._memory = 0
        """Highest host memory in use so far, in bytes: the operator reports it when the pod is killed for memory."""
        self.keep_requested = False
        """Whether the user wants the artifact now (spec.stop). It cannot be taken back."""
        self._closed = False
        self._reachable = True
        self._changed = Condition()
        self._file = Lock()
        self._thread = Thread(target=self._work, name="status", daemon=True)
        self._thread.start()

    def progress(self, progress: Progress) -> None:
        """Report the current progress. The last reported curves stay until it has newer curves."""
        self._memory = max(self._memory, hostmemory.in_use() or 0)
        known = {"kind": self._attempt.kind, "memory_bytes": self._memory or None, "restart": self._restart}
        curves = _curves(self._status) if progress.curves is None else progress.curves
        uses = heartbeat.account().report() if self._attempt.kind == "train" else None
        used = progress.model_copy(update={**known, "curves": curves, "uses": uses})
        self._update("progress", used.to_dict())

    def newest_progress(self) -> dict[str, Any]:
        """What this run has reported last; empty before."""
        return dict(self._status.get("progress", {})) if self._has_progress else {}

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Report the newest checkpoint. The duration of a save, from which the operator derives grace periods, is taken
        from the last report when ``checkpoint`` has none."""
        known = {name: value for name, value in self._status.get("checkpoint", {}).items() if name == "seconds"}
        self._update("checkpoint", {**known, **checkpoint.to_dict()})

    def close(self) -> None:
        """Save the newest values in the file, for the launcher to apply with the result. Does not wait for the API
        server."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._save()

    def _save(self) -> None:
        with self._file:
            try:
                _write(self._reports, self._attempt.uid, self._status, heartbeat.account())
            except OSError as error:
                log.warning("%s cannot be written: %s", self._reports / FILE, error)

    def _update(self, field: str, value: dict[str, Any]) -> None:
        with self._changed:
            self._status = {**self._status, field: value}
            self._has_changes = True
            self._has_progress |= field == "progress"
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._has_changes or self._has_progress or self._closed)
                if self._closed:
                    return
                if not self._has_changes:
                    self._status = {**self._status, "progress": self._progress_of_now()}
                status, self._has_changes = self._status, False
            try:
                self._save()
                self._apply(status)
            except Exception:
                # No error of reporting may end a training.
                log.warning("Status cannot be written", exc_info=True)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, self._interval)

    def _progress_of_now(self) -> dict[str, Any]:
        progress = {**self._status["progress"], "lastUpdateTime": now()}
        if "uses" in progress and (uses := heartbeat.account().report()) is not None:
            progress["uses"] = uses.to_dict()
        return progress

    def _apply(self, status: dict[str, Any]) -> None:
        if self._api is None:
            return
        answer, details = self._api.apply(self._attempt, status)
        if answer in SUPERSEDED:
            self._on_superseded(f"{answer.value}: {details}")
        if answer is Answer.KEEP and not self.keep_requested:
            log.info("spec.stop is set: training ends with the next step, and the artifact is made")
            self.keep_requested = True
        reachable = answer in WRITTEN
        if reachable != self._reachable:
            if reachable:
                log.warning("Status can be written again")
            else:
                log.warning("Status cannot be written, and training continues without it: %s", details)
        self._reachable = reachable


def _curves(status: dict[str, Any]) -> Any:
    """The curves that were reported last."""
    return status.get("progress", {}).get("curves")


def loading(attempt: int) -> Progress:
    """The progress of a run that imports libraries, meets its other ranks and loads the model. This may take long, so
    it is reported: a run that cannot report must not look like one that loads."""
    return Progress(
        attempt=attempt,
        activity="Loading",
        step=0,
        total_steps=0,
        percent=0,
        summary="Loading",
        last_update_time=now(),
    )


def _write(reports: Path, uid: str, status: dict[str, Any], account: Account) -> None:
    furthest = max(account.furthest, read_furthest(reports, uid))
    write_json(reports / FILE, {"uid": uid, "status": status, "furthest": furthest})


def note_furthest(reports: Path, uid: str, account: Account) -> None:
    """The launcher's note about the newest step, which ranks that were killed could not report."""
    if account.furthest > read_furthest(reports, uid):
        try:
            _write(reports, uid, read_status(reports, uid), account)
        except OSError as error:
            log.warning("%s cannot be written: %s", reports / FILE, error)


def report_restart(
    api: ApiServer | None, attempt: AttemptFacts, reports: Path, restart: Restart, account: Account
) -> None:
    """The launcher's write before the ranks start again. Does not wait for the API server: rank 0 repeats it."""
    reported = read_status(reports, attempt.uid)
    known = {"curves": _curves(reported), "uses": account.report()}
    update = {"kind": attempt.kind, "summary": "Restarting", "restart": restart, **known}
    progress = loading(attempt.attempt).model_copy(update=update)
    status = {**reported, "progress": progress.to_dict()}
    try:
        _write(reports, attempt.uid, status, account)
    except OSError as error:
        log.warning("%s cannot be written: %s", reports / FILE, error)
    if api is not None:
        Thread(target=api.apply, args=(attempt, status), name="restart", daemon=True).start()


def now() -> str:
    """The time, as status has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def probe(api: ApiServer | None, attempt: AttemptFacts, reports: Path, seconds: float) -> Answer:
    """Apply the last reported status again, to find out whether anybody still wants the result. Takes at most
    ``seconds``, and never more than TIMEOUT."""
    if api is None:
        return Answer.UNREACHABLE
    status = read_status(reports, attempt.uid)
    unreachable = (Answer.UNREACHABLE, "")
    answer, _ = call_with_timeout(min(seconds, TIMEOUT), lambda: api.apply(attempt, status), unreachable)
    return answer


def apply_result(api: ApiServer | None, attempt: AttemptFacts, reports: Path, result: Result) -> None:
    """The final write: the result, with the last reported status. Retries for some seconds. After that the operator has
    only the termination message."""
    if api is None:
        return
    status = {**read_status(reports, attempt.uid), "result": result.to_dict()}
    unreachable = (Answer.UNREACHABLE, "no answer")
    answer, details = call_with_timeout(RESULT_BUDGET, lambda: _apply_with_retries(api, attempt, status), unreachable)
    if answer not in WRITTEN:
        log.warning("The result cannot be written to the job's status (%s %s)", answer.value, details)


def _apply_with_retries(api: ApiServer, attempt: AttemptFacts, status: dict[str, Any]) -> tuple[Answer, str]:
    deadline = time.monotonic() + RESULT_BUDGET
    while True:
        answer, details = api.apply(attempt, status, min(TIMEOUT, max(0.1, deadline - time.monotonic())))
        if answer not in FOR_NOW or time.monotonic() + RESULT_PAUSE >= deadline:
            return answer, details
        time.sleep(RESULT_PAUSE)
