"""What follows when an attempt has ended: the job's failure, or the next attempt after a backoff."""

from datetime import datetime, timedelta
from zlib import crc32

from finetune_api.exit_codes import EndClass, recomputes_more
from finetune_api.micro_batch import MicroBatch
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import MAX_ATTEMPTS, Attempt, FineTuneJobStatus, Reason

from finetune_operator.names import Kind
from finetune_operator.plan.attempts import UNCOUNTED, entries, longest_row
from finetune_operator.plan.conditions import MESSAGE_MAX, sentence
from finetune_operator.plan.judgement import Verdict
from finetune_operator.settings import Settings
from finetune_operator.views.metadata import format_time, parse_time

DISRUPTIONS_WITHOUT_PROGRESS = 3
_DISRUPTED = (Reason.DISRUPTED, Reason.NODE_LOST)
QUOTED = MESSAGE_MAX - 250
"""Characters of a verdict's message that are repeated, so that what follows it is not cut."""
_NO_PROGRESS: dict[Kind, str] = {
    "prepare": f"{DISRUPTIONS_WITHOUT_PROGRESS} prepare attempts in a row were disrupted. The nodes do not live long"
    " enough. Use other nodes (spec.prepare.nodeSelector).",
    "train": f"{DISRUPTIONS_WITHOUT_PROGRESS} attempts in a row were disrupted before they saved a newer checkpoint."
    " The nodes do not live long enough. Save more often (spec.checkpoints) or use other nodes.",
}


def failure(
    spec: FineTuneJobSpec,
    status: FineTuneJobStatus,
    kind: Kind,
    attempt: Attempt,
    verdict: Verdict,
    micro_batch: MicroBatch,
) -> tuple[Reason, str] | None:
    """Reason and message with which the job has Failed, or None if another attempt follows.
    `attempt` is its ended entry, already in `status`."""
    if verdict.end in (EndClass.USER_ERROR, EndClass.FATAL):
        return verdict.reason, verdict.message
    gpu_was_full, longest = verdict.end is EndClass.GPU_OUT_OF_MEMORY, longest_row(status)
    shortage = verdict.result.out_of_memory if verdict.result else None
    more = recomputes_more(spec.training.recomputed, attempt.recompute, shortage, micro_batch, longest)
    if gpu_was_full and micro_batch.is_smallest(longest) and not more:
        smallest = "1 already" if micro_batch.unit == "rows" else "no longer than the longest row already"
        return Reason.GPU_OUT_OF_MEMORY, (
            f"{sentence(verdict.message[:QUOTED])} The micro-batch is {smallest}. Lower training.cutoffLength,"
            f"{_recompute_all(spec)} use tuning.method lora, or request a larger GPU."
        )
    if attempt.number >= MAX_ATTEMPTS:
        return attempts_exhausted()
    if verdict.end is EndClass.DISRUPTION:
        last = entries(status, kind)[-DISRUPTIONS_WITHOUT_PROGRESS:]
        stuck = attempt.stalled >= DISRUPTIONS_WITHOUT_PROGRESS
        if stuck and len(last) == DISRUPTIONS_WITHOUT_PROGRESS and all(entry.reason in _DISRUPTED for entry in last):
            return Reason.NO_PROGRESS, _NO_PROGRESS[kind]
        return None
    if verdict.end is EndClass.RETRY and attempt.failures > spec.backoff_limit:
        return _backoff_limit_exceeded(spec, status, kind, attempt, verdict)
    return None


def attempts_exhausted() -> tuple[Reason, str]:
    """Reason and message with which a job has Failed that cannot have another attempt, also after a retry."""
    return Reason.BACKOFF_LIMIT_EXCEEDED, (
        f"{MAX_ATTEMPTS} attempts were made. No job can have more. Find out why they end, and recreate the job."
    )


def _recompute_all(spec: FineTuneJobSpec) -> str:
    return " set training.recompute to all," if spec.training.recomputed in ("none", "layers") else ""


def _backoff_limit_exceeded(
    spec: FineTuneJobSpec, status: FineTuneJobStatus, kind: Kind, attempt: Attempt, verdict: Verdict
) -> tuple[Reason, str]:
    attempts = "prepare attempt" if kind == "prepare" else "attempt"
    count = f"1 {attempts} failed" if attempt.failures == 1 else f"{attempt.failures} {attempts}s failed"
    if any(entry.restarts for entry in entries(status, kind)):
        count = f"{_counted(attempt.failures, 'failure')}, those before restarts in the same pods included"
    why = sentence(verdict.message[:QUOTED])
    text = f"{why} {count}; spec.backoffLimit is {spec.backoff_limit}."
    if verdict.reason is Reason.START_DEADLINE_EXCEEDED:
        return verdict.reason, text
    if verdict.reason is Reason.GPU_OUT_OF_MEMORY:
        advice = "Lower training.cutoffLength or request a larger GPU: a smaller micro-batch would not help."
        return verdict.reason, f"{text} {advice}"
    advice = f"Fix the cause, then set spec.retry to {spec.retry + 1} to try again."
    return Reason.BACKOFF_LIMIT_EXCEEDED, f"{verdict.reason}: {text} {advice}"


def next_begins(attempt: Attempt, settings: Settings) -> datetime:
    """When the next attempt may begin: 10 s, doubled for each attempt in a row without a newer checkpoint. At once
    after an end that the user asked for.
    A random part is added after an attempt that could not start: two jobs that each hold half of what both need must
    not begin again together. A retry that somebody asked for begins at once."""
    if attempt.retry is not None:
        return parse_time(attempt.end_time or attempt.start_time)
    doublings = min(max(0, attempt.stalled - 1), 16)
    delay = min(settings.retry_seconds * 2**doublings, settings.retry_seconds_max)
    if attempt.reason in UNCOUNTED:
        delay = 0
    if attempt.reason in (Reason.START_DEADLINE_EXCEEDED, Reason.PARTLY_SCHEDULED):
        delay *= 1 + crc32(attempt.job.encode()) / 2**32
    return parse_time(attempt.end_time or attempt.start_time) + timedelta(seconds=delay)


def less_memory(status: FineTuneJobStatus, verdict: Verdict, micro_batch: MicroBatch) -> str:
    """With what the next attempt begins if the GPU had too little memory for this micro-batch; otherwise empty."""
    if verdict.end is not EndClass.GPU_OUT_OF_MEMORY:
        return ""
    longest = longest_row(status)
    smallest = micro_batch.is_smallest(longest)
    return " with all layers recomputed" if smallest else f" with a micro-batch of {micro_batch.half(longest)}"


def backoff_message(
    attempt: Attempt, verdict: Verdict, begins: datetime, resumes: str, with_less: str, avoids: str
) -> str:
    """How the attempt ended, and when and from where the next attempt begins. ``with_less``: see `less_memory`;
    ``avoids``: see `avoidance.announced`."""
    after = f" after {_counted(attempt.restarts.number, 'restart')} in its pods" if attempt.restarts else ""
    return (
        f"Attempt {attempt.number} ended{after}: {verdict.reason}: {sentence(verdict.message[:QUOTED])}"
        f" Attempt {attempt.number + 1} begins at {format_time(begins)}{with_less}{resumes}{avoids}."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
