"""Reports the end of the run: to the log, the termination message, status.result and the workspace.

`node_run` and `launch` fill in what is known so far. With several nodes each pod has its own termination message, but
there is one status.result: node 0 writes it, unless another node has the cause.
"""

import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from finetune_api.contract import AttemptFacts
from finetune_api.exit_codes import ExitCode
from finetune_api.status import Restart

from finetune_trainer.launcher.ledger import Ledger
from finetune_trainer.reporting.api import ApiServer
from finetune_trainer.reporting.status import apply_result, note_furthest
from finetune_trainer.runtime import exit_report, redaction, results
from finetune_trainer.runtime.exit_report import ExitReport
from finetune_trainer.workspace.folders import Folders

COMMON_CODES = (ExitCode.DONE, ExitCode.DISRUPTED, ExitCode.SUPERSEDED)
"""All nodes end with these codes together, so node 0 reports them."""

log = logging.getLogger(__name__)


@dataclass
class ExitReporter:
    """Where the end is reported to. A field is None as long as it is unknown."""

    kind: Literal["prepare", "train"]
    termination_message: Path
    attempt: AttemptFacts | None = None
    api: ApiServer | None = None
    node: int = 0
    folders: Folders | None = None
    restart: Restart | None = None
    """The newest restart of the ranks in these pods."""
    ledger: Ledger = field(default_factory=Ledger)
    may_write_reports: bool = False
    """True once this run holds the fence, or prepares. Before, it may write nothing to the job's directory."""

    def send(self, report: ExitReport) -> None:
        """Report the end everywhere. Best effort: the exit code has the most important part."""
        report = replace(report, message=redaction.redact(report.message))
        level = logging.ERROR if report.code else logging.INFO
        log.log(level, "Ended with %s (%s): %s", report.code, report.reason, report.message)
        number = self.attempt.attempt if self.attempt else 0
        uses = self.ledger.report() if self.kind == "train" and self.node == 0 else None
        result = results.to_result(report, number, kind=self.kind, restart=self.restart, uses=uses)
        pointer = ""
        if results.is_truncated(report, result):
            pointer = self._save_whole(report)
            result = results.to_result(report, number, pointer, self.kind, self.restart, uses)
        # The termination message comes first because it takes no time. The kubelet creates its file; without the file
        # nobody reads it.
        if self.termination_message.exists():
            try:
                self.termination_message.write_bytes(results.termination_message(result, pointer))
            except OSError as error:
                log.warning("The termination message cannot be written: %s", error)
        if uses and self.folders and self.attempt and self.may_write_reports and report.code != ExitCode.SUPERSEDED:
            note_furthest(self.folders.reports, self.attempt.uid, self.ledger.account)
        if self.attempt is not None and report.code != ExitCode.SUPERSEDED and self._writes_status(report):
            apply_result(self.api, self.attempt, self.folders.reports if self.folders else Path(os.devnull), result)

    def _save_whole(self, report: ExitReport) -> str:
        """Save a report that does not fit elsewhere. Returns a pointer to its file, empty when it was not saved."""
        if self.folders is None or not self.may_write_reports or report.code == ExitCode.SUPERSEDED:
            return ""
        file = self.folders.reports / f"end-{self.folders.run_checkpoints.name}.json"
        try:
            exit_report.write(file, report)
        except OSError as error:
            log.warning("%s cannot be written: %s", file, error)
            return ""
        return f"(the whole message is in {file.relative_to(self.folders.workspace)} of the workspace)"

    def _writes_status(self, report: ExitReport) -> bool:
        """Whether this node writes status.result: of several nodes, the node that knows the cause."""
        if self.node == 0:
            # When a peer disappeared without a report, the launcher of its node knows more.
            return not (report.secondhand and report.code == ExitCode.INTERNAL_ERROR)
        return not report.secondhand and report.code not in COMMON_CODES
