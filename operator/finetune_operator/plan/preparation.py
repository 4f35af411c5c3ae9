"""Preparing: one pod without GPUs fetches and checks everything before a GPU is requested.

The condition Prepared says what it does; once it is True, training follows. What the trainer reports about the data is
copied into the operator's own field, because a training attempt overwrites status.result. If the workspace holds the
job's artifact, the trainer reports that instead, and the job has Succeeded without a training attempt.
"""

from finetune_api.data import UNITS
from finetune_api.output import lacks_copy
from finetune_api.status import Artifact, ConditionType, FineTuneJobStatus, Phase, Prepared, Reason

from finetune_operator.plan import startup
from finetune_operator.plan.advance import AttemptPolicy, Running
from finetune_operator.plan.attempts import current
from finetune_operator.plan.completion import succeeded
from finetune_operator.plan.conditions import sentence, set_phase
from finetune_operator.plan.context import Context
from finetune_operator.plan.judgement import Verdict
from finetune_operator.plan.reports import own_progress

_ACTIVITIES: dict[str, tuple[Reason, str]] = {
    "Fetching": (Reason.FETCHING, "The model and the data are being fetched."),
    "Validating": (Reason.VALIDATING, "Every row of the data is being checked."),
    "Tokenizing": (Reason.TOKENIZING, "The data is being tokenized."),
}
"""One text for each: the step changes all the time, and status.progress has it."""


def _waiting(context: Context, status: FineTuneJobStatus, reason: Reason, message: str) -> FineTuneJobStatus:
    status = context.set_condition(status, ConditionType.PREPARED, None, reason, message)
    return set_phase(status, Phase.PREPARING, reason, message)


def _running(context: Context, status: FineTuneJobStatus, facts: Running) -> FineTuneJobStatus:
    attempt = current(status, "prepare")
    progress = own_progress(status, "prepare", attempt) if attempt else None
    activity = progress.activity if progress is not None else "Fetching"
    reason, message = _ACTIVITIES.get(activity, _ACTIVITIES["Fetching"])
    reason = reason if facts.reason is Reason.RUNNING else facts.reason
    return _waiting(context, status, reason, facts.with_remarks(message))


def _done(context: Context, status: FineTuneJobStatus, verdict: Verdict) -> FineTuneJobStatus:
    result = verdict.result
    prepared = result.prepared if result else None
    if prepared is not None:
        message = describe(prepared, UNITS[context.job.spec.stage])
    elif _artifact(verdict) is not None:
        message = "The workspace already holds this job's artifact."
    else:
        message = "The data is prepared."
    status = status.model_copy(update={"prepared": prepared})
    status = context.set_condition(status, ConditionType.PREPARED, True, Reason.COMPLETED, message)
    if _is_complete(context, verdict):
        return succeeded(status, verdict, context.view.generation, context.now)
    return set_phase(status, Phase.STARTING, Reason.STARTING, startup.BEGINNING)


def _artifact(verdict: Verdict) -> Artifact | None:
    """The artifact that the workspace holds already."""
    return verdict.result.artifact if verdict.result else None


def _is_complete(context: Context, verdict: Verdict) -> bool:
    """Whether nothing is left to do. A training attempt makes the copy at output.uri if that is missing."""
    artifact = _artifact(verdict)
    return artifact is not None and not lacks_copy(context.resolved.output, artifact.published)


def describe(prepared: Prepared, unit: str) -> str:
    """What was prepared, in the unit of the stage's data."""
    counted = f" ({prepared.trained_tokens:,} count)" if prepared.trained_tokens else ""
    packs = f" in {prepared.packs:,} packs" if prepared.packs is not None else ""
    parts = [f"{prepared.rows:,} {unit}{packs} with {prepared.tokens:,} tokens to train on{counted}"]
    if prepared.evaluation_rows:
        parts.append(f"{prepared.evaluation_rows:,} {unit} to evaluate on")
    if prepared.invalid_rows:
        parts.append(f"{prepared.invalid_rows:,} broken rows were left out")
    if prepared.truncated_rows:
        parts.append(f"{prepared.truncated_rows:,} {unit} were cut at training.cutoffLength")
    if prepared.left_out_rows:
        parts.append(f"{prepared.left_out_rows:,} {unit} were left out for training.cutoffLength")
    if prepared.not_used:
        parts.append(f"not used: {prepared.not_used}")
    if prepared.gpu_memory_bytes is not None:
        parts.append(f"each GPU needs about {prepared.gpu_memory_bytes / 2**30:.1f} GiB")
    warning = f" Warning: {sentence(prepared.warning)}" if prepared.warning else ""
    return "; ".join(parts) + "." + warning


PREPARATION = AttemptPolicy(
    kind="prepare",
    nodes=lambda _context: 1,
    waiting=_waiting,
    running=_running,
    done=_done,
    resumes=lambda _status: "",
)
