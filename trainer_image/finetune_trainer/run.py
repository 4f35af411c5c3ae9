"""One run as its ranks see it: the job, the attempt's facts, the directories, and the callbacks to the launcher.

`launcher.worker` builds `Run` and passes it down. No code below it reads environment variables or fixed paths.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_api.micro_batch import MicroBatch
from finetune_api.status import Artifact, Checkpoint, Progress, Reason

from finetune_trainer.workspace.fencing import Fence, check_fence
from finetune_trainer.workspace.folders import Folders
from finetune_trainer.workspace.prepared import PreparedJob


def ignore(*_: object) -> None:
    """A callback that does nothing: for ranks other than 0, and on laptops."""


@dataclass(frozen=True)
class Run:
    """What every part of a workflow may need."""

    job: ResolvedJob
    attempt: AttemptFacts
    run_id: str
    folders: Folders
    rank: int
    local_rank: int
    world_size: int
    micro_batch: MicroBatch
    prepared: PreparedJob
    """The prepared model and data."""
    stop_requested: Callable[[], bool] = field(default=lambda: False)
    """True after SIGTERM. The ranks agree on it before they act."""
    keep_requested: Callable[[], bool] = field(default=lambda: False)
    """True on rank 0 once the user wants the artifact now (spec.stop). The ranks agree on it before they act."""
    ranks_on_node: int = 1
    """Ranks of each node."""
    keeps: bool = False
    """Whether this run trains nothing: it makes the artifact of the newest checkpoint (train --keep)."""
    seconds_left: Callable[[], float] = field(default=lambda: float("inf"))
    """Seconds left for a save after SIGTERM; infinite before."""
    report_progress: Callable[[Progress], None] = ignore
    """Best effort, returns at once. Only rank 0 reports."""
    report_checkpoint: Callable[[Checkpoint], None] = ignore
    """Like report_progress."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the shared files."""
        return self.rank == 0

    def check_fence(self) -> None:
        """Raises Superseded when a later run has taken over the job's directory. Rank 0 checks right before it adds,
        deletes or replaces something there: a node that was frozen continues before its launcher checks the fence
        again."""
        check_fence(self.folders, Fence(self.attempt.uid, self.attempt.attempt, self.run_id, self.job.digest))


@dataclass(frozen=True)
class WorkflowResult:
    """What a workflow returns."""

    artifact: Artifact
    metrics: dict[str, str]
    message: str = "Training completed"
    reason: Reason = Reason.COMPLETED
