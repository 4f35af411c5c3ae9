"""The course of attempts of one kind, from the first to the one that ends it: what preparing and training share.

An attempt is written into the status, then made, watched until it runs, judged when it has ended, and followed by the
next one if that may help. `Course` names what the two kinds do differently.
"""

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.contract import AttemptFacts
from finetune_api.status import Attempt, FineTuneJobStatus, Reason

from finetune_operator.exit_classes import EndClass
from finetune_operator.manifests.attempt import Child, children
from finetune_operator.names import Kind
from finetune_operator.observed import BatchView, Observed, format_time
from finetune_operator.plan import startup
from finetune_operator.plan.attempts import begun, current, ended, final_reason, half, retry_due, with_attempt
from finetune_operator.plan.case import Case, Create, Delete, Plan
from finetune_operator.plan.completion import failed
from finetune_operator.plan.conditions import MESSAGE_MAX
from finetune_operator.plan.deadlines import EXPIRED, grace_period, mark_expired, start_deadline
from finetune_operator.plan.judgement import Verdict, judge

TRY_AGAIN_SECONDS = 5.0
"""Between two tries to make what the API server refuses."""


@dataclass(frozen=True)
class Course:
    """What one kind of attempt has of its own."""

    kind: Kind
    nodes: Callable[[Case], int]
    """Pods of an attempt."""
    waiting: Callable[[Case, FineTuneJobStatus, Reason, str], FineTuneJobStatus]
    """The status of a job whose attempt does not run, and why."""
    running: Callable[[Case, FineTuneJobStatus], FineTuneJobStatus]
    """The status of one whose attempt does."""
    done: Callable[[Case, FineTuneJobStatus, Verdict], FineTuneJobStatus]
    """The status when an attempt has reached its end."""
    resumes: Callable[[FineTuneJobStatus], str]
    """Where an attempt after the newest one goes on, for people; empty where it begins anew as a matter of course."""


def go_on(course: Course, case: Case, status: FineTuneJobStatus) -> Plan:
    """What to do next about the newest attempt, or about beginning one."""
    observed = case.observed.of(course.kind)
    attempt = current(status, course.kind)
    if attempt is None or attempt.state == "Ended":
        return _next_attempt(course, case, status, observed)
    batch = observed.batch(attempt.number)
    alive = [pod for pod in observed.pods if pod.attempt == attempt.number and not pod.gone]
    if batch is None:
        if alive:
            return Plan(course.waiting(case, status, Reason.ENDING, "Waiting for pods of a deleted Job."))
        if attempt.reason == EXPIRED:
            return _ended(course, case, status, attempt, _expired(attempt))
        if attempt.state == "Running":
            gone = Verdict(EndClass.RETRY, Reason.JOB_DELETED, "The attempt's Job was deleted by somebody.")
            return _ended(course, case, status, attempt, gone)
        if observed.refused:
            return _refused(course, case, status, attempt, observed.refused)
        return Plan(status, Create(_children(course, case, status, attempt)))
    if attempt.reason == EXPIRED:
        return Plan(status, None if batch.deleting else Delete(batch))
    if batch.finished:
        if alive:
            return Plan(status)
        return _ended(course, case, status, attempt, _judged(course, case, status, attempt, batch, observed))
    return _under_way(course, case, status, attempt, observed)


def _next_attempt(course: Course, case: Case, status: FineTuneJobStatus, observed: Observed) -> Plan:
    before = current(status, course.kind)
    newest = max(observed.batches, key=lambda batch: batch.attempt, default=None)
    micro_batch = _micro_batch(case)
    if before is None and newest is not None:
        # Somebody wiped the status: what the newest Job does, or has done, still counts.
        entry = begun(case.view, status, course.kind, newest.attempt, micro_batch, newest.created)
        status = with_attempt(status, course.kind, entry)
        return Plan(course.waiting(case, status, Reason.STARTING, startup.BEGINNING))
    if before is not None:
        due = (retry_due(before, case.settings) - case.now).total_seconds()
        if due > 0:
            return Plan(status, look_again=due)
    number = max(before.number if before else 0, newest.attempt if newest else 0) + 1
    entry = begun(case.view, status, course.kind, number, micro_batch, case.now)
    status = with_attempt(status, course.kind, entry)
    status = status.model_copy(update={"start_time": status.start_time or format_time(case.now)})
    return Plan(course.waiting(case, status, Reason.STARTING, startup.BEGINNING))


def _refused(course: Course, case: Case, status: FineTuneJobStatus, attempt: Attempt, why: str) -> Plan:
    """The attempt's objects can't be made. It is tried again until the start deadline."""
    message = f"{why} Check the namespace's quota and admission policies, and spec.resources."
    left = start_deadline(attempt, case.job.spec, case.now)
    if left <= 0:
        finding = startup.Finding(False, Reason.PODS_REJECTED, message)
        return Plan(mark_expired(status, course.kind, attempt, case.job.spec, finding))
    status = course.waiting(case, status, Reason.PODS_REJECTED, message)
    return Plan(status, look_again=min(max(left, 1.0), TRY_AGAIN_SECONDS))


def _under_way(course: Course, case: Case, status: FineTuneJobStatus, attempt: Attempt, observed: Observed) -> Plan:
    """The attempt's Job is there and not finished."""
    nodes = course.nodes(case)
    finding = startup.look(observed.pods, observed.events, nodes)
    status = with_attempt(status, course.kind, attempt := _disruption_noted(attempt, observed, nodes))
    if finding.running and attempt.state == "Starting":
        attempt = attempt.model_copy(update={"state": "Running", "running_time": format_time(case.now)})
        status = with_attempt(status, course.kind, attempt)
    if finding.running or (attempt.state == "Running" and finding.reason is not Reason.NODE_LOST):
        return Plan(course.running(case, status))
    status = course.waiting(case, status, finding.reason, finding.message)
    started = len(observed.pods) >= nodes and all(pod.gone or pod.running for pod in observed.pods)
    left = start_deadline(attempt, case.job.spec, case.now)
    if left <= 0 and attempt.state == "Starting" and not started:
        return Plan(mark_expired(status, course.kind, attempt, case.job.spec, finding))
    return Plan(status, look_again=min(max(left, 1.0), startup.QUIET_SECONDS))


def _disruption_noted(attempt: Attempt, observed: Observed, nodes: int) -> Attempt:
    """A disrupted pod may be gone before the attempt has ended, and then only what its peers say of its loss is left.
    So it is written down as the reason of an attempt that has not ended; and struck out if the pod stays after all."""
    disrupted = next((pod for pod in observed.pods if pod.disruption is not None), None)
    if disrupted is not None and attempt.reason is None:
        message = f"{disrupted.called(nodes)}: {disrupted.disruption}"
        return attempt.model_copy(update={"reason": Reason.DISRUPTED, "message": message[:MESSAGE_MAX]})
    stayed = disrupted is None and len(observed.pods) >= nodes
    if stayed and attempt.reason == Reason.DISRUPTED:
        return attempt.model_copy(update={"reason": None, "message": None})
    return attempt


def _judged(
    course: Course, case: Case, status: FineTuneJobStatus, attempt: Attempt, batch: BatchView, observed: Observed
) -> Verdict:
    """By all that there is: the pods, their Job, and what trainer and operator have written into the status."""
    progress, whose = status.progress, (attempt.number, course.kind == "train")
    # Attempts at preparing and at training are counted apart: the activity says which one it is.
    own = progress is not None and (progress.attempt, progress.activity == "Training") == whose
    return judge(
        batch,
        observed.pods,
        status.result,
        course.nodes(case),
        peak_bytes=progress.memory_bytes if progress and own else None,
        disruption=(attempt.message or "") if attempt.reason == Reason.DISRUPTED else "",
    )


def _ended(course: Course, case: Case, status: FineTuneJobStatus, attempt: Attempt, verdict: Verdict) -> Plan:
    """The attempt is over: it has reached its end, or the job has failed or waits for its next attempt."""
    spec, settings = case.job.spec, case.settings
    entry = ended(status, course.kind, attempt, verdict, case.now)
    status = with_attempt(status, course.kind, entry)
    if verdict.end is EndClass.DONE:
        return Plan(course.done(case, status, verdict))
    micro_batch = attempt.micro_batch_size or _micro_batch(case)
    final = final_reason(spec, status, course.kind, entry, verdict, micro_batch)
    if final is not None:
        return Plan(failed(status, final[0], final[1], case.view.generation, case.now))
    due = retry_due(entry, settings)
    text = (
        f"Attempt {entry.number} ended: {verdict.reason}: {verdict.message[: MESSAGE_MAX - 200]}"
        f" Attempt {entry.number + 1}{course.resumes(status)}; it begins at {format_time(due)}"
    )
    if verdict.end is EndClass.GPU_OUT_OF_MEMORY:
        text += f" with a micro-batch of {half(micro_batch)}"
    text += "."
    status = course.waiting(case, status, Reason.RETRY_BACKOFF, text)
    return Plan(status, look_again=max(0.0, (due - case.now).total_seconds()))


def _expired(attempt: Attempt) -> Verdict:
    return Verdict(EndClass.RETRY, Reason.START_DEADLINE_EXCEEDED, attempt.message or "It did not start in time.")


def _micro_batch(case: Case) -> int:
    assert case.resolved.training.micro_batch_size is not None, "filled in by resolve()"
    return case.resolved.training.micro_batch_size


def _children(course: Course, case: Case, status: FineTuneJobStatus, attempt: Attempt) -> tuple[Child, ...]:
    assert status.resolved is not None, "set at acceptance"
    facts = AttemptFacts(
        namespace=case.view.namespace,
        name=case.view.name,
        uid=case.view.uid,
        kind=course.kind,
        attempt=attempt.number,
        job_name=attempt.job,
        micro_batch_size=attempt.micro_batch_size,
        grace_period_seconds=grace_period(course.kind, case.job.spec, status),
    )
    fixed = {"contract": status.resolved.contract, "digest": status.resolved.digest}
    resolved = case.resolved.model_copy(update=fixed)
    return children(facts, case.job.spec, resolved, status.resolved.image, case.settings)
