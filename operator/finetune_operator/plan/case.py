"""What a plan is made from, and what it consists of. Every decision of this package takes a `Case`."""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.contract import ResolvedJob
from finetune_api.job import FineTuneJob
from finetune_api.status import ConditionType, FineTuneJobStatus, Reason

from finetune_operator.manifests.attempt import Child
from finetune_operator.observed import BatchView, JobView, Observed
from finetune_operator.plan.conditions import with_condition
from finetune_operator.settings import Settings


@dataclass(frozen=True)
class Case:
    """An accepted FineTuneJob and all that is known of it."""

    view: JobView
    job: FineTuneJob
    resolved: ResolvedJob
    observed: Observed
    now: datetime
    settings: Settings

    def said(
        self, status: FineTuneJobStatus, kind: ConditionType, value: bool | None, reason: Reason, message: str
    ) -> FineTuneJobStatus:
        """The status with one condition set."""
        return with_condition(status, kind, value, reason, message, self.view.generation, self.now)


@dataclass(frozen=True)
class Create:
    """Create the attempt's children, the Job last."""

    children: tuple[Child, ...]


@dataclass(frozen=True)
class Delete:
    """Delete a Job with its pods, and see them gone before it is."""

    batch: BatchView


@dataclass(frozen=True)
class Plan:
    """The status to be had, then the step to take, then when to look again unless something happens first."""

    status: FineTuneJobStatus
    step: Create | Delete | None = None
    look_again: float | None = None
