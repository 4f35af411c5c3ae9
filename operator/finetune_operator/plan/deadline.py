"""activeDeadlineSeconds: how long a job has trained, over all its attempts, and what happens at the limit.

The status has a stopwatch: activeSeconds counts what is over, activeSince says since when the current attempt trains.
The stopwatch runs while an attempt holds its GPUs, also while its pods restart or save. It stands still before an
attempt runs, between attempts, and while somebody suspends the child job. Preparing does not count: it holds no GPU.
"""

import json
from datetime import datetime, timedelta

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Attempt, FineTuneJobStatus, Phase, Reason

from finetune_operator.names import Kind
from finetune_operator.plan.attempts import current, entries, newest_checkpoint
from finetune_operator.plan.context import Context
from finetune_operator.views.metadata import format_time, parse_time
from finetune_operator.views.snapshot import Snapshot

OVERDUE = "The training time of the job, spec.activeDeadlineSeconds, is over. Its attempt saves and ends."


def with_time_counted(status: FineTuneJobStatus, snapshot: Snapshot, now: datetime) -> FineTuneJobStatus:
    """The status with its stopwatch started or stopped, as its newest training attempt requires."""
    attempt = current(status, "train")
    if attempt is not None and attempt.keeps:
        return status  # it trains nothing
    child = snapshot.child_job("train", attempt.number) if attempt else None
    if status.active_since is None:
        if attempt is None or attempt.running_time is None or attempt.state == "Ended" or status.phase != Phase.RUNNING:
            return status
        if status.active_seconds is not None:
            return status.model_copy(update={"active_since": format_time(now)})
        # The first attempt, or a status of a release that did not count.
        earlier = sum(_ran(entry) for entry in entries(status, "train") if entry.state == "Ended")
        return status.model_copy(update={"active_seconds": earlier, "active_since": attempt.running_time})
    runs = attempt is not None and attempt.state != "Ended" and attempt.running_time is not None
    if runs and not (child is not None and child.suspended):
        return status
    # The end may have been seen late, after a time without an operator. The child job remembers it.
    ended = child.ended if child is not None and child.ended is not None else now
    return status.model_copy(update={"active_seconds": active_seconds(status, min(ended, now)), "active_since": None})


def _ran(attempt: Attempt) -> int:
    if attempt.running_time is None or attempt.end_time is None:
        return 0
    return max(0, int((parse_time(attempt.end_time) - parse_time(attempt.running_time)).total_seconds()))


def active_seconds(status: FineTuneJobStatus, now: datetime) -> int:
    """How long the job has trained until now."""
    since = parse_time(status.active_since) if status.active_since else now
    return (status.active_seconds or 0) + max(0, int((now - since).total_seconds()))


def due(kind: Kind, spec: FineTuneJobSpec, status: FineTuneJobStatus, attempt: Attempt) -> datetime | None:
    """When the operator ends the attempt because the training time is over. None: not while nothing changes."""
    limit = spec.active_deadline_seconds
    if kind != "train" or limit is None or status.active_since is None or attempt.state != "Running":
        return None
    return parse_time(status.active_since) + timedelta(seconds=limit - (status.active_seconds or 0))


def is_exceeded(kind: Kind, spec: FineTuneJobSpec, status: FineTuneJobStatus) -> bool:
    """Whether no time is left for another attempt."""
    limit = spec.active_deadline_seconds
    return kind == "train" and limit is not None and (status.active_seconds or 0) >= limit


def failure(context: Context, status: FineTuneJobStatus) -> tuple[Reason, str]:
    """Reason and message with which a job has Failed whose training time is over."""
    spec, step, number = context.job.spec, newest_checkpoint(status), status.attempt or 0
    limit, ran = spec.active_deadline_seconds, active_seconds(status, context.now)
    attempts = "1 attempt" if number == 1 else f"{number} attempts"
    saved = f"The newest checkpoint that was reported is of step {step}." if step else "It has reported no checkpoint."
    view, longer = context.view, 2 * max(ran, limit or 0)
    patch = json.dumps({"spec": {"activeDeadlineSeconds": longer, "retry": view.retry + 1}}, separators=(",", ":"))
    command = f"kubectl patch ftj {view.name} -n {view.namespace} --type merge -p '{patch}'"
    return Reason.DEADLINE_EXCEEDED, (
        f"The job trained for {ran} s in {attempts}; spec.activeDeadlineSeconds is {limit}. {saved} To continue from"
        f" it, raise spec.activeDeadlineSeconds and spec.retry: {command}"
    )
