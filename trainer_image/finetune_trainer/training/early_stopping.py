"""Early stopping: training ends before its last step, if the evaluation loss has stopped falling.

`loop` asks after each evaluation, and when a run starts, because it may resume from the step at which an earlier run
stopped. The counters are the same on every rank and in every checkpoint, so a resumed run stops at the same step as an
uninterrupted run.
"""

from finetune_api.contract import ResolvedJob

from finetune_trainer.reporting.counters import Counters


def is_enabled(job: ResolvedJob) -> bool:
    """Whether the job may stop early."""
    return job.evaluation is not None and job.evaluation.early_stopping is not None


def reason(job: ResolvedJob, counters: Counters) -> str | None:
    """Why training ends now, for people. None if it continues."""
    spec = job.evaluation.early_stopping if job.evaluation else None
    if spec is None or counters.evaluations_without_improvement < spec.patience:
        return None
    times = "evaluation" if spec.patience == 1 else f"{spec.patience} evaluations"
    best = "" if counters.best_loss is None else f" (best: {counters.best_loss:.4f} at step {counters.best_step})"
    return f"the evaluation loss was no better in the last {times}{best}"
