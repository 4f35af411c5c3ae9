"""The account of a run over all that happens in its pod: before its ranks, in them, between them and after them.

The ranks count for themselves (`runtime.heartbeat`). What a killed rank counted up to its last heartbeat is in its
file, and the ranks that start next continue from there.
"""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.status import RunUses, Use

from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.exit_report import ExitReport
from finetune_trainer.runtime.uses import Account

STARTED: tuple[Use, ...] = ("train", "redone")


class Ledger:
    """The account of one pod, from now on. Only that of node 0 is reported."""

    def __init__(self) -> None:
        self.account = Account(since=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), until=time.monotonic())

    def name(self, run: str, furthest: int) -> None:
        """The run that it is of. ``furthest``: the newest step that earlier runs of the job have reported."""
        self.account = replace(self.account, run=run, furthest=furthest)

    def spend(self, use: Use) -> Account:
        """Count the time until now; the account."""
        self.account = self.account.spent(use, time.monotonic())
        return self.account

    def take(self, folder: Path, rank: int) -> None:
        """Take over the account of a rank that has ended, up to its last heartbeat."""
        self.account = heartbeat.read_account(folder, rank, self.account)

    def close_ranks(self, report: ExitReport | None) -> None:
        """Count the time from the last heartbeat to the end of the ranks. What they did then is lost, if they failed.
        None: a later run took over, or SIGTERM came first."""
        if report is None or report.code in (ExitCode.DONE, ExitCode.DISRUPTED):
            self.spend("idle")
        elif report.code == ExitCode.HUNG:
            self.spend("stalled")
        else:
            self.spend("redone" if any(use in self.account.seconds for use in STARTED) else "load")

    def report(self) -> RunUses | None:
        """The account of now."""
        return self.spend("idle").report()
