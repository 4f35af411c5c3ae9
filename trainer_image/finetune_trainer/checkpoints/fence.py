"""Whether the job's folder is still this run's, asked by rank 0 right before it deletes or replaces something there.

``launch`` looks every few seconds; a node that froze and thaws goes on before it looks again.
"""

from finetune_trainer import workspace
from finetune_trainer.run import Run
from finetune_trainer.workspace import Fence


def check(run: Run) -> None:
    """Raises Superseded when a later run has taken the fence."""
    mine = Fence(run.attempt.uid, run.attempt.attempt, run.run_id, run.job.digest)
    workspace.check_fence(run.folders, mine)
