"""Attempts of either kind: how one begins, what follows when it has ended, and when the next may begin."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from zlib import crc32

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ATTEMPTS_SHOWN, MAX_ATTEMPTS, Attempt, ConditionType, FineTuneJobStatus, Reason

from finetune_operator.exit_classes import EndClass
from finetune_operator.names import Kind, attempt_job
from finetune_operator.observed import BatchView, JobView, format_time, parse_time
from finetune_operator.plan.conditions import is_true
from finetune_operator.plan.judgement import Verdict
from finetune_operator.settings import Settings

DISRUPTIONS_WITHOUT_PROGRESS = 3
_DISRUPTED: dict[Kind, str] = {
    "prepare": f"{DISRUPTIONS_WITHOUT_PROGRESS} attempts at preparing the data were disrupted in a row: use nodes that"
    " live longer (spec.prepare.nodeSelector).",
    "train": f"{DISRUPTIONS_WITHOUT_PROGRESS} attempts in a row were disrupted before they saved a newer checkpoint:"
    " save more often (spec.checkpoints), or use nodes that live longer.",
}


def kind_due(status: FineTuneJobStatus, batches: Sequence[BatchView]) -> Kind:
    """What the job is at. Where training was begun everything had been prepared, also if the status was wiped since."""
    begun = bool(status.attempts) or any(batch.kind == "train" for batch in batches)
    return "train" if begun or is_true(status, ConditionType.PREPARED) else "prepare"


def entries(status: FineTuneJobStatus, kind: Kind) -> list[Attempt]:
    """The attempts of a kind that are still listed, oldest first."""
    return (status.prepare_attempts if kind == "prepare" else status.attempts) or []


def newest_checkpoint(status: FineTuneJobStatus) -> int | None:
    """Step of the checkpoint that the newest attempt which knows of one has left, or goes on from. It may be older than
    what an attempt before knew: one that turns out not to be whole is passed over."""
    return _last_step(entries(status, "train"))


def _last_step(listed: Sequence[Attempt]) -> int | None:
    steps = [entry.checkpoint_step for entry in listed if entry.checkpoint_step is not None]
    return steps[-1] if steps else None


def current(status: FineTuneJobStatus, kind: Kind) -> Attempt | None:
    """The newest attempt of a kind."""
    return next(reversed(entries(status, kind)), None)


def with_attempt(status: FineTuneJobStatus, kind: Kind, attempt: Attempt) -> FineTuneJobStatus:
    """The status with the attempt added or replaced; the oldest entries make room."""
    others = [entry for entry in entries(status, kind) if entry.number != attempt.number]
    listed = [*others, attempt][-ATTEMPTS_SHOWN:]
    if kind == "prepare":
        return status.model_copy(update={"prepare_attempts": listed, "prepare_attempt": attempt.number})
    return status.model_copy(update={"attempts": listed, "attempt": attempt.number})


def begun(
    view: JobView, status: FineTuneJobStatus, kind: Kind, number: int, micro_batch: int, now: datetime
) -> Attempt:
    """The entry of a new attempt. It is written before the Job is: a crash in between leaves a number, never an
    unknown Job. `micro_batch` is the job's own, from which a GPU out of memory leads downwards."""
    before = current(status, kind)
    smaller = before.micro_batch_size if before else None
    if before and before.reason == Reason.GPU_OUT_OF_MEMORY and not _counted(status, kind):
        smaller = half(smaller or micro_batch)
    return Attempt(
        number=number,
        job=attempt_job(kind, view.name, view.uid, number),
        state="Starting",
        start_time=format_time(now),
        micro_batch_size=smaller,
        failures=before.failures if before else 0,
        stalled=before.stalled if before else 0,
    )


def going_on(status: FineTuneJobStatus, attempt: Attempt) -> Attempt:
    """The entry of an attempt that runs, with the checkpoint that it goes on from: what its trainer reports before it
    has saved any of its own."""
    known = status.checkpoint
    if known is None or known.attempt == attempt.number:
        return attempt
    return attempt.model_copy(update={"checkpoint_step": known.step})


def ended(status: FineTuneJobStatus, kind: Kind, attempt: Attempt, verdict: Verdict, now: datetime) -> Attempt:
    """The entry of an attempt that is over, with what it means for the counts."""
    checkpoint = status.checkpoint.step if status.checkpoint and kind == "train" else None
    earlier = [entry for entry in entries(status, kind) if entry.number < attempt.number]
    before = _last_step([*earlier, attempt])
    stalled = 0 if (checkpoint or 0) > (before or 0) else attempt.stalled + 1
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


def _counted(status: FineTuneJobStatus, kind: Kind) -> bool:
    """Whether the newest attempt counted against backoffLimit, as a GPU out of memory does where a smaller micro-batch
    would not have helped."""
    *earlier, last = entries(status, kind)
    return last.failures > (earlier[-1].failures if earlier else 0)


def half(size: int) -> int:
    """The largest divisor of size that is at most half of it: it divides what size divides."""
    return next((candidate for candidate in range(size // 2, 0, -1) if size % candidate == 0), 1)


def final_reason(
    spec: FineTuneJobSpec, status: FineTuneJobStatus, kind: Kind, attempt: Attempt, verdict: Verdict, micro_batch: int
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
        last = entries(status, kind)[-DISRUPTIONS_WITHOUT_PROGRESS:]
        stuck = attempt.stalled >= DISRUPTIONS_WITHOUT_PROGRESS
        if stuck and len(last) == DISRUPTIONS_WITHOUT_PROGRESS and all(e.reason == Reason.DISRUPTED for e in last):
            return Reason.NO_PROGRESS, _DISRUPTED[kind]
        return None
    if verdict.end is EndClass.RETRY and attempt.failures > spec.backoff_limit:
        count = "1 attempt" if attempt.failures == 1 else f"{attempt.failures} attempts"
        count += " at preparing the data" if kind == "prepare" else ""
        counted = f"{count} failed; spec.backoffLimit is {spec.backoff_limit}."
        if verdict.reason is Reason.START_DEADLINE_EXCEEDED:
            return verdict.reason, f"{verdict.message} {counted}"
        if verdict.reason is Reason.GPU_OUT_OF_MEMORY:
            advice = "Lower training.cutoffLength or ask for a larger GPU: a smaller micro-batch would not help."
            return verdict.reason, f"{verdict.message} {counted} {advice}"
        return Reason.BACKOFF_LIMIT_EXCEEDED, f"{verdict.reason}: {verdict.message} {counted}"
    return None


def retry_due(attempt: Attempt, settings: Settings) -> datetime:
    """When the attempt after this one may begin: 10 s, doubled for each attempt in a row without a newer checkpoint.
    Later, by chance, where it could not start: two jobs that each hold half of what both need must not go on so."""
    doublings = min(max(0, attempt.stalled - 1), 16)
    delay = min(settings.retry_seconds * 2**doublings, settings.retry_seconds_max)
    if attempt.reason == Reason.START_DEADLINE_EXCEEDED:
        delay *= 1 + crc32(attempt.job.encode()) / 2**32
    return parse_time(attempt.end_time or attempt.start_time) + timedelta(seconds=delay)
