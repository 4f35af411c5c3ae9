"""Stop before the last step, when the evaluation loss has stopped falling.

Asked by `steps` after each evaluation, and when a run starts that may go on from the step at which an earlier one
stopped. What it looks at is in the counters, which every rank has alike and every checkpoint holds: a resumed run stops
at the step at which the uninterrupted one would have.
"""

from finetune_api.contract import ResolvedJob

from finetune_trainer.reporting.counters import Counters


def reason(job: ResolvedJob, counters: Counters) -> str | None:
    """Why to stop now; None where training goes on."""
    spec = job.evaluation.early_stopping if job.evaluation else None
    if spec is None or counters.without_better < spec.patience:
        return None
    times = "evaluation" if spec.patience == 1 else f"{spec.patience} evaluations"
    best = "" if counters.best_loss is None else f" (best: {counters.best_loss:.4f} at step {counters.best_step})"
    return f"the evaluation loss was no better in the last {times}{best}"


def wanted(job: ResolvedJob) -> bool:
    """Whether the job may stop early."""
    return job.evaluation is not None and job.evaluation.early_stopping is not None
