"""Preparing: one CPU-only pod fetches and checks everything before a GPU is asked for.

Condition Prepared says how far it is; once True it stays so, and training follows. What the trainer reports of the
data is copied into the operator's own field, because the training attempt overwrites status.result.
"""

from finetune_api.data import UNITS
from finetune_api.status import ConditionType, FineTuneJobStatus, Phase, Prepared, Reason

from finetune_operator.plan import startup
from finetune_operator.plan.case import Case
from finetune_operator.plan.conditions import summarized
from finetune_operator.plan.course import Course
from finetune_operator.plan.judgement import Verdict

_DOING: dict[str, tuple[Reason, str]] = {
    "Fetching": (Reason.FETCHING, "The model and the data are being fetched."),
    "Validating": (Reason.VALIDATING, "Every row of the data is being checked."),
    "Tokenizing": (Reason.TOKENIZING, "The data is being tokenized."),
}
"""One text each: how far it is changes all the time, and is in status.progress."""


def _waiting(case: Case, status: FineTuneJobStatus, reason: Reason, message: str) -> FineTuneJobStatus:
    status = case.said(status, ConditionType.PREPARED, None, reason, message)
    return summarized(status, Phase.PREPARING, reason, message)


def _running(case: Case, status: FineTuneJobStatus) -> FineTuneJobStatus:
    progress = status.progress
    current = progress is not None and progress.attempt == status.prepare_attempt
    doing = progress.activity if progress is not None and current else "Fetching"
    return _waiting(case, status, *_DOING.get(doing, _DOING["Fetching"]))


def _done(case: Case, status: FineTuneJobStatus, verdict: Verdict) -> FineTuneJobStatus:
    result = verdict.result
    prepared = result.prepared if result else None
    if prepared is not None:
        message = told(prepared, UNITS[case.job.spec.stage])
    elif result is not None and result.artifact is not None:
        message = "The workspace holds this job's artifact already."
    else:
        message = "The data is prepared."
    status = status.model_copy(update={"prepared": prepared})
    status = case.said(status, ConditionType.PREPARED, True, Reason.COMPLETED, message)
    return summarized(status, Phase.STARTING, Reason.STARTING, startup.BEGINNING)


def told(prepared: Prepared, unit: str) -> str:
    """What was prepared, for people, in the unit of the stage's data."""
    counted = f" ({prepared.trained_tokens:,} count)" if prepared.trained_tokens else ""
    parts = [f"{prepared.rows:,} {unit} with {prepared.tokens:,} tokens to train on{counted}"]
    if prepared.evaluation_rows:
        parts.append(f"{prepared.evaluation_rows:,} {unit} to evaluate on")
    if prepared.invalid_rows:
        parts.append(f"{prepared.invalid_rows:,} broken rows were left out")
    if prepared.truncated_rows:
        parts.append(f"{prepared.truncated_rows:,} {unit} were cut at training.cutoffLength")
    if prepared.gpu_memory_bytes is not None:
        parts.append(f"each GPU needs about {prepared.gpu_memory_bytes / 2**30:.1f} GiB")
    warning = f" Warning: {prepared.warning}." if prepared.warning else ""
    return "; ".join(parts) + "." + warning


PREPARATION = Course(
    kind="prepare",
    nodes=lambda _case: 1,
    waiting=_waiting,
    running=_running,
    done=_done,
    resumes=lambda _status: " follows",
)
