"""Entries of attempts in status: how an entry begins, changes and ends."""

from collections.abc import Sequence
from datetime import datetime

from finetune_api.exit_codes import EndClass
from finetune_api.micro_batch import MicroBatch, first_micro_batch
from finetune_api.status import ATTEMPTS_SHOWN, Attempt, ConditionType, FineTuneJobStatus, Reason

from finetune_operator.names import Kind, attempt_job
from finetune_operator.plan.avoidance import avoided
from finetune_operator.plan.conditions import MESSAGE_MAX, find_condition, sentence
from finetune_operator.plan.containers import ends_at
from finetune_operator.plan.decision import Need, missing
from finetune_operator.plan.judgement import Verdict
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import format_time
from finetune_operator.views.snapshot import Read, Snapshot

KINDS: tuple[Kind, ...] = ("prepare", "train")
UNCOUNTED = (Reason.SUSPENDED_BY_USER, Reason.STOPPED_BY_USER, Reason.UNSCHEDULABLE)
"""Ends that the user asked for, or that only let the next attempt use every node. They show nothing about the attempt's
progress."""


def current_kind(status: FineTuneJobStatus, child_jobs: Sequence[ChildJobView]) -> Kind:
    """Whether the job prepares or trains. If somebody wiped the status, a training attempt proves that everything was
    prepared. A job that is open again may have to prepare once more."""
    prepared = find_condition(status, ConditionType.PREPARED)
    if prepared is not None:
        return "train" if prepared.status == "True" else "prepare"
    training = bool(status.attempts) or any(child.kind == "train" for child in child_jobs)
    return "train" if training else "prepare"


def entries(status: FineTuneJobStatus, kind: Kind) -> list[Attempt]:
    """The attempts of a kind that are still listed, oldest first."""
    return (status.prepare_attempts if kind == "prepare" else status.attempts) or []


def current(status: FineTuneJobStatus, kind: Kind) -> Attempt | None:
    """The newest attempt of a kind."""
    return next(reversed(entries(status, kind)), None)


def unconfirmed(status: FineTuneJobStatus, snapshot: Snapshot, now: datetime) -> Need | None:
    """A child job that is missing, finished, or kept by containers of others decides over its attempt, so it is
    confirmed by live reads before: the FineTuneJob first, since the other reads are about its current attempt. A child
    job that is to be created is not looked for: its name is unique, so creating it again returns the existing Job."""
    kind = current_kind(status, snapshot.child_jobs)
    attempt = current(status, kind)
    if attempt is None or attempt.state == "Ended":
        return None
    child = snapshot.child_job(kind, attempt.number)
    if child is not None and not child.finished:
        pods = snapshot.pods_of(kind, attempt.number)
        ends = ends_at(pods, child.parallelism or len(pods))
        if ends is None or now < ends:
            return None
    need = missing(snapshot, Read.JOB)
    if need is not None or awaits_child_job(status, snapshot):
        return need
    if child is None:
        need = missing(snapshot, Read.CHILD_JOB, kind, attempt)
    return need or missing(snapshot, Read.PODS, kind, attempt)


def is_idle(status: FineTuneJobStatus, snapshot: Snapshot) -> bool:
    """Whether no child job runs and no attempt waits for its verdict: the next step starts something."""
    attempt = current(status, current_kind(status, snapshot.child_jobs))
    if attempt is None or attempt.state == "Ended":
        return all(child.finished for child in snapshot.child_jobs)
    return awaits_child_job(status, snapshot)


def awaits_child_job(status: FineTuneJobStatus, snapshot: Snapshot) -> bool:
    """Whether the current attempt has begun, but its child job is not created yet."""
    kind = current_kind(status, snapshot.child_jobs)
    attempt = current(status, kind)
    return attempt is not None and attempt.state == "Starting" and not snapshot.child_job(kind, attempt.number)


def was_prepared(status: FineTuneJobStatus) -> bool:
    """Whether the data was prepared once. It is prepared again for other resources (`plan.renewal`)."""
    return status.prepared is not None or bool(status.attempts)


def set_attempt(status: FineTuneJobStatus, kind: Kind, attempt: Attempt) -> FineTuneJobStatus:
    """The status with the attempt added or replaced; the oldest entries are dropped."""
    others = [entry for entry in entries(status, kind) if entry.number != attempt.number]
    listed = [*others, attempt][-ATTEMPTS_SHOWN:]
    if kind == "prepare":
        return status.model_copy(update={"prepare_attempts": listed, "prepare_attempt": attempt.number})
    return status.model_copy(update={"attempts": listed, "attempt": attempt.number})


def begun(
    view: JobView,
    status: FineTuneJobStatus,
    kind: Kind,
    number: int,
    micro_batch: MicroBatch,
    now: datetime,
    keeps: bool | None = None,
) -> Attempt:
    """The entry of a new attempt. It is written before the child job is created: a crash in between leaves a number,
    never an unknown child job. `micro_batch` is the job's own; a GPU out of memory leads downwards from it."""
    before = current(status, kind)
    smaller, recompute = first_micro_batch(before), before.recompute if before else None
    if before and before.reason == Reason.GPU_OUT_OF_MEMORY and not _counted(status, kind):
        longest, held = longest_row(status), smaller or micro_batch
        if not held.is_smallest(longest):
            smaller = held.half(longest)
        elif before.retry is None and not keeps:  # else the job would have failed: see `retries.failure`
            recompute = "all"
    avoids = avoided(entries(status, kind), now)
    return Attempt(
        number=number,
        job=attempt_job(kind, view.name, view.uid, number),
        state="Starting",
        start_time=format_time(now),
        avoids=avoids or None,
        keeps=keeps,
        micro_batch_size=smaller.fields()["micro_batch_size"] if smaller else None,
        micro_batch_tokens=smaller.fields()["micro_batch_tokens"] if smaller else None,
        recompute=recompute,
        failures=before.failures if before and before.retry is None else 0,
        stalled=before.stalled if before and before.retry is None else 0,
    )


def running(attempt: Attempt, now: datetime) -> Attempt:
    """The entry once all pods run for the first time. An attempt that is Ending does not change."""
    if attempt.running_time is not None:
        return attempt
    state = "Running" if attempt.state == "Starting" else attempt.state
    return attempt.model_copy(update={"state": state, "running_time": format_time(now)})


def ended(
    status: FineTuneJobStatus, kind: Kind, attempt: Attempt, verdict: Verdict, now: datetime, note: str = ""
) -> Attempt:
    """The entry of an attempt that has ended, with what its end means for the counts."""
    message = f"{sentence(verdict.message)[: MESSAGE_MAX - len(note) - 1]} {note}" if note else verdict.message
    checkpoint = status.checkpoint.step if status.checkpoint and kind == "train" else None
    earlier = [entry for entry in entries(status, kind) if entry.number < attempt.number]
    # After a restart the entry has the step that the restart resumed from, and the attempt had begun before it.
    before = _last_step(earlier if attempt.restarts else [*earlier, attempt])
    stalled = 0 if (checkpoint or 0) > (before or 0) else attempt.stalled + (verdict.reason not in UNCOUNTED)
    return attempt.model_copy(
        update={
            "state": "Ended",
            "cause": None,
            "end_time": format_time(now),
            "reason": verdict.reason,
            "exit_code": verdict.exit_code,
            "message": message,
            "checkpoint_step": checkpoint,
            "failures": attempt.failures + _in_place(attempt) + (verdict.end is EndClass.RETRY),
            "stalled": stalled,
        }
    )


def newest_checkpoint(status: FineTuneJobStatus) -> int | None:
    """Step of the newest checkpoint that was reported, or that the last attempt resumed from. It may be older than an
    earlier attempt's: the trainer skips a checkpoint that is not whole."""
    return _last_step(entries(status, "train"))


def _last_step(listed: Sequence[Attempt]) -> int | None:
    steps = [entry.checkpoint_step for entry in listed if entry.checkpoint_step is not None]
    return steps[-1] if steps else None


def _counted(status: FineTuneJobStatus, kind: Kind) -> bool:
    """Whether the newest attempt counted against backoffLimit. A GPU out of memory does if a smaller micro-batch would
    not have helped."""
    *earlier, last = entries(status, kind)
    before = earlier[-1].failures if earlier and earlier[-1].retry is None else 0
    return last.failures - _in_place(last) > before


def _in_place(attempt: Attempt) -> int:
    """Failures within the pods of the attempt, after which its trainer started its processes again."""
    return attempt.restarts.failures if attempt.restarts else 0


def longest_row(status: FineTuneJobStatus) -> int:
    """Tokens of the longest row, below which training.microBatchTokens changes nothing; 1 if nobody reported it."""
    return (status.prepared.longest_row if status.prepared else None) or 1
