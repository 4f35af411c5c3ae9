"""Says how the run ended to whoever listens: the log, the termination message, status.result, the workspace.

Filled in by `launch` as it becomes known who is told. With several nodes each pod has a termination message of its own,
and status.result is one: node 0's, unless its end only came of another node's.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune_api.contract import AttemptFacts
from finetune_api.exit_codes import ExitCode

from finetune_trainer import results
from finetune_trainer.reporting.api import ApiServer
from finetune_trainer.reporting.status import apply_result
from finetune_trainer.results import End
from finetune_trainer.run import Folders

SHARED_ENDS = (ExitCode.DONE, ExitCode.DISRUPTED, ExitCode.SUPERSEDED)
"""All nodes end so together: node 0 says it."""

log = logging.getLogger(__name__)


@dataclass
class Outlet:
    """Where the end is told."""

    kind: Literal["prepare", "train"]
    termination_message: Path
    facts: AttemptFacts | None = None
    api: ApiServer | None = None
    node: int = 0
    folders: Folders | None = None
    owns_folders: bool = False
    """True once the fence is taken: before, nothing in the job's folder is this run's to write."""

    def tell(self, end: End) -> None:
        """Best effort: the exit code says the most important part."""
        facts, folders = self.facts, self.folders
        attempt = facts.attempt if facts else 0
        level = logging.ERROR if end.code else logging.INFO
        log.log(level, "Ended with %s (%s): %s", end.code, end.reason, end.message)
        pointer = ""
        result = results.to_result(end, attempt, kind=self.kind)
        wanted = end.code != ExitCode.SUPERSEDED
        if folders is not None and self.owns_folders and wanted and results.is_cut(end, result):
            file = folders.reports / f"end-{folders.run_checkpoints.name}.json"
            try:
                results.write_end(file, end)
                pointer = f"(the whole is in {file.relative_to(folders.workspace)} of the workspace)"
            except OSError as error:
                log.warning("%s can't be written: %s", file, error)
            result = results.to_result(end, attempt, pointer, self.kind)
        # First, as it takes no time. The kubelet makes the file; where there is none, nobody reads it.
        if self.termination_message.exists():
            try:
                self.termination_message.write_bytes(results.termination_message(result, pointer))
            except OSError as error:
                log.warning("The termination message can't be written: %s", error)
        if facts is not None and wanted and self._speaks(end):
            apply_result(self.api, facts, folders.reports if folders else Path(os.devnull), result)

    def _speaks(self, end: End) -> bool:
        """Whether status.result is this node's to write: of several, the one that knows what happened."""
        if self.node == 0:
            # A peer that is gone without a word has a launcher, which knows more.
            return not (end.echo and end.code == ExitCode.INTERNAL_ERROR)
        return not end.echo and end.code not in SHARED_ENDS
