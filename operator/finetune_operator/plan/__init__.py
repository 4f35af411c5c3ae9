"""What to do next about one FineTuneJob: a pure function of what is seen, the settings and the time.

`plan` reads top to bottom like the list of phases. It gives the status that the job should have, and at most one step;
the status is written first, and a step is taken only when the status already says so. A crash between any two writes
therefore leaves a state from which the same function goes on.
"""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_api.job import FineTuneJob
from finetune_api.status import Attempt, ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.exit_classes import EndClass
from finetune_operator.manifests.training import Child, children
from finetune_operator.observed import BatchView, JobView, Observed, format_time
from finetune_operator.plan import startup
from finetune_operator.plan.acceptance import Refused, accept, pinned
from finetune_operator.plan.attempts import begun, current, ended, final_reason, retry_due, with_attempt
from finetune_operator.plan.completion import failed, succeeded
from finetune_operator.plan.conditions import is_terminal, summarized, with_condition
from finetune_operator.plan.deadlines import EXPIRED, mark_expired, start_deadline
from finetune_operator.plan.judgement import Verdict, judge
from finetune_operator.settings import Settings

TRY_AGAIN_SECONDS = 5.0
"""Between two tries to make what the API server refuses."""


@dataclass(frozen=True)
class Create:
    """Create the attempt's children, the Job last."""

    children: tuple[Child, ...]


@dataclass(frozen=True)
class Delete:
    """Delete a Job with its pods, and see them gone before it is."""

    batch: BatchView


@dataclass(frozen=True)
class Plan:
    """The status to be had, then the step to take, then when to look again unless something happens first."""

    status: FineTuneJobStatus
    step: Create | Delete | None = None
    look_again: float | None = None


def plan(view: JobView, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """What to do about a FineTuneJob that is not being deleted (the garbage collector sees to those)."""
    status = FineTuneJobStatus.model_validate(view.status)
    if is_terminal(status):
        return _after_the_end(status, observed)
    status = status.model_copy(update={"observed_generation": view.generation})
    try:
        job, resolved = accept(view, settings)
    except Refused as refused:
        status = with_condition(
            status, ConditionType.ACCEPTED, False, Reason.INVALID_SPEC, str(refused), view.generation, now
        )
        return Plan(failed(status, Reason.INVALID_SPEC, str(refused), view.generation, now))
    status = _accepted(view, status, job, resolved, now, settings)

    attempt = current(status)
    if attempt is None or attempt.state == "Ended":
        return _next_attempt(view, status, resolved, observed, now, settings)
    batch = observed.batch(attempt.number)
    alive = [pod for pod in observed.pods if pod.attempt == attempt.number and not pod.gone]
    if batch is None:
        if alive:
            return Plan(_waiting(view, status, Reason.ENDING, "Waiting for pods of a deleted Job.", now))
        if attempt.reason == EXPIRED:
            return _ended(view, status, job, resolved, attempt, _expired(attempt), now, settings)
        if attempt.state == "Running":
            gone = Verdict(EndClass.RETRY, Reason.JOB_DELETED, "The attempt's Job was deleted by somebody.")
            return _ended(view, status, job, resolved, attempt, gone, now, settings)
        if observed.refused:
            return _refused(view, status, job, attempt, observed.refused, now)
        return Plan(status, Create(_children(view, status, job, resolved, attempt, settings)))
    if attempt.reason == EXPIRED:
        return Plan(status, None if batch.deleting else Delete(batch))
    if batch.finished:
        if alive:
            return Plan(status)
        verdict = judge(batch, observed.pods, status.result, resolved.runtime.nodes)
        return _ended(view, status, job, resolved, attempt, verdict, now, settings)
    return _under_way(view, status, job, attempt, observed, now)


def _after_the_end(status: FineTuneJobStatus, observed: Observed) -> Plan:
    """Nothing is written any more; only a Job that still runs for nobody is ended."""
    leftover = next((batch for batch in observed.batches if not batch.finished and not batch.deleting), None)
    return Plan(status, Delete(leftover) if leftover else None)


def _accepted(
    view: JobView,
    status: FineTuneJobStatus,
    job: FineTuneJob,
    resolved: ResolvedJob,
    now: datetime,
    settings: Settings,
) -> FineTuneJobStatus:
    status = status.model_copy(update={"resolved": pinned(status, job, resolved, settings)})
    return with_condition(
        status, ConditionType.ACCEPTED, True, Reason.ACCEPTED, "The spec can be run.", view.generation, now
    )


def _next_attempt(
    view: JobView,
    status: FineTuneJobStatus,
    resolved: ResolvedJob,
    observed: Observed,
    now: datetime,
    settings: Settings,
) -> Plan:
    before = current(status)
    newest = max(observed.batches, key=lambda batch: batch.attempt, default=None)
    if before is None and newest is not None:
        # Somebody wiped the status: what the newest Job does, or has done, still counts.
        entry = begun(view, status, newest.attempt, _micro_batch(resolved), newest.created)
        return Plan(_waiting(view, with_attempt(status, entry), Reason.STARTING, startup.BEGINNING, now))
    if before is not None:
        due = (retry_due(before, settings) - now).total_seconds()
        if due > 0:
            return Plan(status, look_again=due)
    number = max(before.number if before else 0, newest.attempt if newest else 0) + 1
    entry = begun(view, status, number, _micro_batch(resolved), now)
    status = with_attempt(status, entry)
    status = status.model_copy(update={"start_time": status.start_time or format_time(now)})
    return Plan(_waiting(view, status, Reason.STARTING, startup.BEGINNING, now))


def _refused(
    view: JobView, status: FineTuneJobStatus, job: FineTuneJob, attempt: Attempt, why: str, now: datetime
) -> Plan:
    """The attempt's objects can't be made. It is tried again until the start deadline."""
    message = f"{why} Check the namespace's quota and admission policies, and spec.resources."
    left = start_deadline(attempt, job.spec, now)
    if left <= 0:
        finding = startup.Finding(False, Reason.PODS_REJECTED, message)
        return Plan(mark_expired(status, attempt, job.spec, finding))
    status = _waiting(view, status, Reason.PODS_REJECTED, message, now)
    return Plan(status, look_again=min(max(left, 1.0), TRY_AGAIN_SECONDS))


def _under_way(
    view: JobView,
    status: FineTuneJobStatus,
    job: FineTuneJob,
    attempt: Attempt,
    observed: Observed,
    now: datetime,
) -> Plan:
    """The attempt's Job is there and not finished."""
    ranks = job.spec.resources.nodes
    finding = startup.look(observed.pods, observed.events, ranks)
    if finding.running and attempt.state == "Starting":
        attempt = attempt.model_copy(update={"state": "Running", "running_time": format_time(now)})
        status = with_attempt(status, attempt)
    if finding.running or (attempt.state == "Running" and finding.reason is not Reason.NODE_LOST):
        status = with_condition(
            status, ConditionType.RUNNING, True, Reason.RUNNING, "All pods run.", view.generation, now
        )
        return Plan(summarized(status, Phase.RUNNING, Reason.RUNNING, "Training."))
    status = _waiting(view, status, finding.reason, finding.message, now)
    started = len(observed.pods) >= ranks and all(pod.gone or pod.running for pod in observed.pods)
    left = start_deadline(attempt, job.spec, now)
    if left <= 0 and attempt.state == "Starting" and not started:
        return Plan(mark_expired(status, attempt, job.spec, finding))
    return Plan(status, look_again=min(max(left, 1.0), startup.QUIET_SECONDS))


def _waiting(
    view: JobView, status: FineTuneJobStatus, reason: Reason, message: str, now: datetime
) -> FineTuneJobStatus:
    """Phase Starting, and why."""
    status = with_condition(status, ConditionType.RUNNING, False, reason, message, view.generation, now)
    return summarized(status, Phase.STARTING, reason, message)


def _ended(
    view: JobView,
    status: FineTuneJobStatus,
    job: FineTuneJob,
    resolved: ResolvedJob,
    attempt: Attempt,
    verdict: Verdict,
    now: datetime,
    settings: Settings,
) -> Plan:
    """The attempt is over: the job has succeeded, failed, or waits for its next attempt."""
    entry = ended(status, attempt, verdict, now)
    status = with_attempt(status, entry)
    if verdict.end is EndClass.DONE:
        return Plan(succeeded(status, verdict, view.generation, now))
    final = final_reason(job.spec, status, entry, verdict, attempt.micro_batch_size or _micro_batch(resolved))
    if final is not None:
        return Plan(failed(status, final[0], final[1], view.generation, now))
    due = retry_due(entry, settings)
    step = status.checkpoint.step if status.checkpoint else None
    where = f"from checkpoint {step}" if step is not None else "from the start"
    text = (
        f"Attempt {entry.number} ended: {verdict.reason}: {verdict.message}"
        f" The next one begins at {format_time(due)} {where}."
    )
    status = _waiting(view, status, Reason.RETRY_BACKOFF, text, now)
    return Plan(status, look_again=max(0.0, (due - now).total_seconds()))


def _expired(attempt: Attempt) -> Verdict:
    return Verdict(EndClass.RETRY, Reason.START_DEADLINE_EXCEEDED, attempt.message or "It did not start in time.")


def _micro_batch(resolved: ResolvedJob) -> int:
    assert resolved.training.micro_batch_size is not None, "filled in by resolve()"
    return resolved.training.micro_batch_size


def _children(
    view: JobView,
    status: FineTuneJobStatus,
    job: FineTuneJob,
    resolved: ResolvedJob,
    attempt: Attempt,
    settings: Settings,
) -> tuple[Child, ...]:
    assert status.resolved is not None, "set by _accepted()"
    facts = AttemptFacts(
        namespace=view.namespace,
        name=view.name,
        uid=view.uid,
        attempt=attempt.number,
        job_name=attempt.job,
        micro_batch_size=attempt.micro_batch_size,
        grace_period_seconds=job.spec.resources.termination_grace_period_seconds,
    )
    pinned_job = resolved.model_copy(update={"contract": status.resolved.contract, "digest": status.resolved.digest})
    return children(facts, job.spec, pinned_job, status.resolved.image, settings)


__all__ = ["Create", "Delete", "Plan", "plan"]
