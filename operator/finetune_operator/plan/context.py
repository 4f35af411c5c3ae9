"""The input of every decision about an accepted FineTuneJob."""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.contract import ResolvedJob
from finetune_api.job import FineTuneJob
from finetune_api.micro_batch import MicroBatch, first_micro_batch
from finetune_api.status import ConditionType, FineTuneJobStatus, Reason

from finetune_operator.plan.conditions import set_condition
from finetune_operator.settings import Settings
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot


@dataclass(frozen=True)
class Context:
    """An accepted FineTuneJob, the state of the cluster, the time and the settings."""

    view: JobView
    job: FineTuneJob
    """Its operational sections are the live spec's; the others are those of the resolved job."""
    resolved: ResolvedJob
    """What this release understands of `document`."""
    document: str
    """The resolved job that attempts receive, as JSON."""
    hold: str
    """Why no attempt can be created; empty if it can."""
    differs: str
    """How this release would resolve the job differently; empty if it would not."""
    snapshot: Snapshot
    now: datetime
    settings: Settings

    @property
    def micro_batch(self) -> MicroBatch:
        """The job's own. A GPU out of memory leads downwards from it."""
        micro_batch = first_micro_batch(self.resolved.training)
        assert micro_batch is not None, "filled in by resolve()"
        return micro_batch

    def set_condition(
        self, status: FineTuneJobStatus, kind: ConditionType, value: bool | None, reason: Reason, message: str
    ) -> FineTuneJobStatus:
        """The status with one condition set."""
        return set_condition(status, kind, value, reason, message, self.view.generation, self.now)
