"""Attempts: how one begins, what follows when it has ended, and when the next may begin."""

from datetime import datetime, timedelta

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ATTEMPTS_SHOWN, MAX_ATTEMPTS, Attempt, FineTuneJobStatus, Reason

from finetune_operator.exit_classes import EndClass
from finetune_operator.names import training_job
from finetune_operator.observed import JobView, format_time, parse_time
from finetune_operator.plan.judgement import Verdict
from finetune_operator.settings import Settings

DISRUPTIONS_WITHOUT_PROGRESS = 3


def current(status: FineTuneJobStatus) -> Attempt | None:
    """The newest attempt."""
    return status.attempts[-1] if status.attempts else None


def with_attempt(status: FineTuneJobStatus, attempt: Attempt) -> FineTuneJobStatus:
    """The status with the attempt added or replaced; the oldest entries make room."""
    others = [entry for entry in status.attempts or [] if entry.number != attempt.number]
    return status.model_copy(update={"attempts": [*others, attempt][-ATTEMPTS_SHOWN:], "attempt": attempt.number})


def begun(view: JobView, status: FineTuneJobStatus, number: int, micro_batch: int, now: datetime) -> Attempt:
    """The entry of a new attempt. It is written before the Job is: a crash in between leaves a number, never an
    unknown Job. `micro_batch` is the job's own, from which a GPU out of memory leads downwards."""
    before = current(status)
    smaller = before.micro_batch_size if before else None
    if before and before.reason == Reason.GPU_OUT_OF_MEMORY:
        smaller = _half(smaller or micro_batch)
    return Attempt(
        number=number,
        job=training_job(view.name, view.uid, number),
        state="Starting",
        start_time=format_time(now),
        micro_batch_size=smaller,
        failures=before.failures if before else 0,
        stalled=before.stalled if before else 0,
    )


def ended(status: FineTuneJobStatus, attempt: Attempt, verdict: Verdict, now: datetime) -> Attempt:
    """The entry of an attempt that is over, with what it means for the counts."""
    checkpoint = status.checkpoint.step if status.checkpoint else None
    entries = status.attempts or []
    before = max((entry.checkpoint_step or 0 for entry in entries if entry.number < attempt.number), default=0)
    stalled = 0 if (checkpoint or 0) > before else attempt.stalled + 1
    return attempt.model_copy(
        update={
            "state": "Ended",
            "end_time": format_time(now),
            "reason": verdict.reason,
            "exit_code": verdict.exit_code,
            "message": verdict.message,
            "checkpoint_step": checkpoint,
            "failures": attempt.failures + (verdict.end is EndClass.RETRY),
            "stalled": stalled,
        }
    )


def _half(size: int) -> int:
    """The largest divisor of size that is at most half of it: it divides what size divides."""
    return next((candidate for candidate in range(size // 2, 0, -1) if size % candidate == 0), 1)


def final_reason(
    spec: FineTuneJobSpec, status: FineTuneJobStatus, attempt: Attempt, verdict: Verdict, micro_batch: int
) -> tuple[Reason, str] | None:
    """Reason and message with which the job is Failed for good, or None when there is to be another attempt.
    `attempt` is its ended entry, already in `status`."""
    if verdict.end in (EndClass.USER_ERROR, EndClass.FATAL):
        return verdict.reason, verdict.message
    if verdict.end is EndClass.GPU_OUT_OF_MEMORY and micro_batch <= 1:
        return Reason.GPU_OUT_OF_MEMORY, (
            f"{verdict.message} The micro-batch is 1 already: lower training.cutoffLength, set gradientCheckpointing,"
            " use tuning.method lora, or ask for a larger GPU."
        )
    if attempt.number >= MAX_ATTEMPTS:
        return Reason.BACKOFF_LIMIT_EXCEEDED, f"{attempt.number} attempts were made, more than can be counted."
    if verdict.end is EndClass.DISRUPTION:
        last = (status.attempts or [])[-DISRUPTIONS_WITHOUT_PROGRESS:]
        stuck = attempt.stalled >= DISRUPTIONS_WITHOUT_PROGRESS
        if stuck and len(last) == DISRUPTIONS_WITHOUT_PROGRESS and all(e.reason == Reason.DISRUPTED for e in last):
            return Reason.NO_PROGRESS, (
                f"{DISRUPTIONS_WITHOUT_PROGRESS} attempts in a row were disrupted before they saved a newer"
                " checkpoint: save more often (spec.checkpoints), or use nodes that live longer."
            )
        return None
    if verdict.end is EndClass.RETRY and attempt.failures > spec.backoff_limit:
        count = "1 attempt" if attempt.failures == 1 else f"{attempt.failures} attempts"
        counted = f"{count} failed; spec.backoffLimit is {spec.backoff_limit}."
        if verdict.reason is Reason.START_DEADLINE_EXCEEDED:
            return verdict.reason, f"{verdict.message} {counted}"
        return Reason.BACKOFF_LIMIT_EXCEEDED, f"{verdict.reason}: {verdict.message} {counted}"
    return None


def retry_due(attempt: Attempt, settings: Settings) -> datetime:
    """When the attempt after this one may begin: 10 s, doubled for each attempt in a row without a newer checkpoint."""
    doublings = min(max(0, attempt.stalled - 1), 16)
    delay = min(settings.retry_seconds * 2**doublings, settings.retry_seconds_max)
    return parse_time(attempt.end_time or attempt.start_time) + timedelta(seconds=delay)
