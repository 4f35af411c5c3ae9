"""Exit reports between ranks, so that all ranks end soon after one of them, and for the same reason.

`worker` creates this, and `rendezvous` connects it to the store on rank 0. A rank that ends writes its report to the
store. On each other rank a thread reads it and, if that rank does not end by itself, ends it with the same code and
message: the main thread may be blocked in a collective that never returns. A rank whose connection breaks first waits a
moment for the report, and without one names the ranks that disappeared.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Event, Thread
from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode

from finetune_trainer.runtime import exit_report, hardware, heartbeat
from finetune_trainer.runtime.exit_report import ExitReport
from finetune_trainer.runtime.silence import named

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

POLL = 0.5
NOTICE = 5.0
"""Seconds in which a rank may detect by itself that another rank failed."""
REPORT_WAIT = 2.5
"""Seconds in which the report of another rank may arrive after the connection to it broke."""
LINGER = 3.0
"""Seconds for which rank 0 keeps the store after its own end, so that the others can read its report."""


class Peers:
    """The other ranks. ``leave`` ends this rank, from a thread; ``stop_seconds`` is the time for a save after
    SIGTERM."""

    def __init__(
        self, rank: int, world_size: int, ranks_on_node: int, stop_seconds: float, leave: Callable[[ExitReport], None]
    ) -> None:
        self._rank, self._world_size, self._ranks_on_node = rank, world_size, ranks_on_node
        self._stop_seconds, self._leave = stop_seconds, leave
        self._store: TCPStore | None = None
        self._leaving = Event()
        self._acknowledged = False

    def connect(self, store: "TCPStore") -> None:
        """Start to watch the reports. Only the thread and `announce` use this connection to the store."""
        self._store = store
        Thread(target=self._watch, name="peers", daemon=True).start()

    def announce(self, report: ExitReport) -> None:
        """Write this rank's report for the others. Rank 0 waits until all have read it, at most LINGER."""
        self._leaving.set()
        if self._store is None:
            return
        try:
            self._store.set(f"report/{self._rank}", json.dumps(exit_report.to_json(report)))
            self._store.add("reports", 1)
            self._acknowledge()
            deadline = time.monotonic() + LINGER
            while (
                self._rank == 0
                and self._store.add("acknowledged", 0) < self._world_size
                and time.monotonic() < deadline
            ):
                time.sleep(POLL / 5)
        except RuntimeError:
            pass  # rank 0 has ended, and the store with it

    def explain(self, error: BaseException) -> ExitReport | None:
        """The cause of a broken connection to another rank; None when ``error`` is something else."""
        from finetune_trainer.collectives import is_broken  # torch: a rank that is connected has imported it

        if self._store is None or not is_broken(error) or hardware.tells_of_it(str(error)):
            return None
        first = str(error).strip().split("\n")[0]
        message = f"Rank {self._rank} lost its connection to the others ({first})"
        try:
            self._store.set(f"lost/{self._rank}", "")
            deadline = time.monotonic() + REPORT_WAIT
            while time.monotonic() < deadline:
                cause = self._cause(self._reports())
                if cause is not None:
                    return cause
                time.sleep(POLL / 5)
            missing = [rank for rank in range(self._world_size) if not self._has_reported(rank)]
        except RuntimeError:
            missing = [0]
        if missing:
            message += f". {self._disappeared(missing)}"
        return _secondhand(exit_report.internal_error(message))

    def _has_reported(self, rank: int) -> bool:
        assert self._store is not None
        return bool(self._store.check([f"lost/{rank}"]) or self._store.check([f"report/{rank}"]))

    def _watch(self) -> None:
        assert self._store is not None
        known = 0
        while not self._leaving.wait(POLL):
            try:
                number = self._store.add("reports", 0)
                if number == known:
                    continue
                known, reports = number, self._reports()
                cause = self._cause(reports)
                if cause is None and 0 in reports:
                    return  # all work is done, and the store is about to end
                if cause is not None:
                    self._acknowledge()
            except RuntimeError:
                cause = _secondhand(exit_report.internal_error(self._disappeared([0])))
            if cause is not None:
                if not self._leaving.wait(self._seconds_to_leave(cause)):
                    self._leave(cause)
                return

    def _seconds_to_leave(self, cause: ExitReport) -> float:
        """After SIGTERM all ranks save together. Before the first step there is nothing to save, and a rank may end
        alone."""
        saving = cause.code == ExitCode.DISRUPTED and heartbeat.last().phase != "load"
        return self._stop_seconds if saving else NOTICE

    def _reports(self) -> dict[int, ExitReport]:
        """Rank -> report, for the other ranks that have ended."""
        assert self._store is not None
        peers = (rank for rank in range(self._world_size) if rank != self._rank)
        texts = {rank: self._store.get(f"report/{rank}") for rank in peers if self._store.check([f"report/{rank}"])}
        return {rank: exit_report.from_json(json.loads(text)) for rank, text in texts.items()}

    def _cause(self, reports: dict[int, ExitReport]) -> ExitReport | None:
        """The strongest report of a failure, as a secondhand report that names its rank; None without a failure."""
        failed = {rank: report for rank, report in reports.items() if report.code != 0 and not report.secondhand}
        if not failed:
            return None
        decisive = exit_report.combine(list(failed.values()))
        rank = next(rank for rank, report in failed.items() if report.reason == decisive.reason)
        return _secondhand(
            replace(decisive, message=f"{describe_ranks([rank], self._ranks_on_node)}: {failed[rank].message}")
        )

    def _disappeared(self, ranks: list[int]) -> str:
        verb = "has" if len(ranks) == 1 else "have"
        who = describe_ranks(ranks, self._ranks_on_node)
        return f"{who} {verb} disappeared without a report. See how the pod ended"

    def _acknowledge(self) -> None:
        """Once per rank: this rank knows of the end, so rank 0 need not wait for it."""
        if not self._acknowledged and self._store is not None:
            self._acknowledged = True
            self._store.add("acknowledged", 1)


def describe_ranks(ranks: list[int], ranks_on_node: int) -> str:
    """For people: "Ranks 2 and 3 (node 1)"."""
    return f"{named('Rank', ranks)} ({named('node', sorted({rank // ranks_on_node for rank in ranks}))})"


def _secondhand(report: ExitReport) -> ExitReport:
    return replace(report, secondhand=True)
