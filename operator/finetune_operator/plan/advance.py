"""The state machine of attempts, shared by preparing and training.

    Starting -> Running -> (Ending ->) Ended -> the next attempt, or the end of the job

An attempt is written into the status first. Then its child job is created, watched until it runs, and judged when it
has ended. An attempt that only containers of others keep is judged first, and its child job is deleted afterwards.
`AttemptPolicy` names what the two kinds do differently.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.exit_codes import EndClass
from finetune_api.micro_batch import first_micro_batch
from finetune_api.status import MAX_ATTEMPTS, Attempt, FineTuneJobStatus, Reason

from finetune_operator.names import Kind
from finetune_operator.plan import (
    avoidance,
    containers,
    deadline,
    ending,
    lost_nodes,
    queueing,
    reports,
    retention,
    startup,
    turns,
)
from finetune_operator.plan.attempts import KINDS, begun, current, ended, entries, running, set_attempt
from finetune_operator.plan.children import children
from finetune_operator.plan.completion import failed
from finetune_operator.plan.conditions import sentence
from finetune_operator.plan.context import Context
from finetune_operator.plan.decision import Create, Delete, Plan
from finetune_operator.plan.judgement import Verdict, judge, judge_result
from finetune_operator.plan.patience import create_again, pods_due, start_deadline
from finetune_operator.plan.retries import attempts_exhausted, backoff_message, failure, less_memory, next_begins
from finetune_operator.plan.suspension import Suspension, is_refused_again, is_resuming
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.metadata import format_time, parse_time

UNWATCHED_SECONDS = 60.0
"""Between two looks at a child job that the watch does not show."""
_JOB_DELETED = "Somebody deleted the attempt's child job."


@dataclass(frozen=True)
class Running:
    """What the status tells about an attempt that runs."""

    pods: str = "All pods run."
    reason: Reason = Reason.RUNNING
    remarks: tuple[str, ...] = ()
    """What somebody should look at."""

    def with_remarks(self, message: str) -> str:
        return " ".join([message, *self.remarks])


@dataclass(frozen=True)
class AttemptPolicy:
    """How preparing and training differ."""

    kind: Kind
    nodes: Callable[[Context], int]
    """Pods of an attempt."""
    waiting: Callable[[Context, FineTuneJobStatus, Reason, str], FineTuneJobStatus]
    """The status of a job whose attempt does not run, and why."""
    running: Callable[[Context, FineTuneJobStatus, Running], FineTuneJobStatus]
    """The status of a job whose attempt runs."""
    done: Callable[[Context, FineTuneJobStatus, Verdict], FineTuneJobStatus]
    """The status when an attempt has succeeded."""
    resumes: Callable[[FineTuneJobStatus], str]
    """Where the next attempt resumes, as the end of a sentence about it; empty if that is not known."""
    keeps: bool = False
    """Whether its attempts make the artifact of the newest checkpoint, and train nothing."""


def advance(policy: AttemptPolicy, context: Context, status: FineTuneJobStatus) -> Plan:
    """What to do next about the newest attempt, or about beginning the next."""
    attempt = current(status, policy.kind)
    if attempt is None or attempt.state == "Ended":
        return _next_attempt(policy, context, status)
    attempt = reports.with_restarts(status, policy.kind, attempt)
    child = context.snapshot.child_job(policy.kind, attempt.number)
    pods, nodes = context.snapshot.pods_of(policy.kind, attempt.number), policy.nodes(context)
    alive = any(not pod.gone for pod in pods)
    if child is None and alive:
        message = "Waiting for pods of a deleted child job to end."
        return Plan(policy.waiting(context, status, Reason.ENDING, message))
    if ending.is_ended_by_operator(attempt) and (child is None or not child.complete):
        return _ending(policy, context, status, attempt, child)
    if child is None:
        return _without_child_job(policy, context, status, attempt)
    given_up = [pod for pod in context.snapshot.given_up if (pod.kind, pod.attempt) == (policy.kind, attempt.number)]
    if given_up and not child.finished:
        entry = attempt.model_copy(update={"suspect": given_up[0].node})
        message = lost_nodes.message(given_up, nodes, context.settings)
        return _end(policy, context, status, entry, Reason.NODE_LOST, message)
    if child.finished:
        if alive:
            return Plan(status)
        return _ended(policy, context, status, attempt, _judged(policy, context, status, attempt, child))
    ends = containers.ends_at(pods, nodes)
    if ends is not None and context.now >= ends:
        verdict, note = _judged(policy, context, status, attempt, child), containers.note(pods, nodes)
        return _ended(policy, context, status, attempt, verdict, note)
    overdue = None if policy.keeps else deadline.due(policy.kind, context.job.spec, status, attempt)
    if overdue is not None and context.now >= overdue:
        return _end(policy, context, status, attempt, Reason.DEADLINE_EXCEEDED, deadline.OVERDUE)
    planned = _under_way(policy, context, status, attempt, child)
    further = tuple(moment for moment in (ends, overdue) if moment is not None)
    if not child.watched:
        further = (*further, _after(context, UNWATCHED_SECONDS))
    return replace(planned, deadlines=(*planned.deadlines, *further))


def _end(
    policy: AttemptPolicy, context: Context, status: FineTuneJobStatus, attempt: Attempt, cause: Reason, message: str
) -> Plan:
    """The operator will end the attempt. The message says why."""
    status = policy.waiting(context, status, Reason.ENDING, message)
    return Plan(set_attempt(status, policy.kind, ending.set_ending(attempt, cause, message)))


def _next_attempt(policy: AttemptPolicy, context: Context, status: FineTuneJobStatus) -> Plan:
    if not policy.keeps and deadline.is_exceeded(policy.kind, context.job.spec, status):
        return _failed(context, status, deadline.failure(context, status))
    if outdated := retention.outdated(status, context.snapshot, policy.kind):
        return Plan(status, Delete(outdated))
    before = current(status, policy.kind)
    newest = max(context.snapshot.child_jobs_of(policy.kind), key=lambda child: child.attempt, default=None)
    micro_batch = context.micro_batch
    if before is None and newest is not None:
        # Somebody wiped the status: the newest child job still counts.
        entry = begun(context.view, status, policy.kind, newest.attempt, micro_batch, newest.created)
        status = _with_start_time(context, set_attempt(status, policy.kind, entry))
        return Plan(policy.waiting(context, status, Reason.STARTING, startup.BEGINNING))
    waits = before is not None and not is_resuming(status) and (before.keeps or not policy.keeps)
    begins = next_begins(before, context.settings) if before is not None and waits else context.now
    deadlines = (begins,) if begins > context.now else ()
    left = next((child for child in context.snapshot.child_jobs if not child.finished), None)
    if left is not None:
        if not deadlines:
            message = "Waiting for the pods of the last attempt to end."
            status = policy.waiting(context, status, Reason.ENDING, message)
        return Plan(status, None if left.deleting else Delete(left), deadlines)
    if deadlines:
        return Plan(status, deadlines=deadlines)
    number = max(before.number if before else 0, newest.attempt if newest else 0) + 1
    if number > MAX_ATTEMPTS:
        return _failed(context, status, attempts_exhausted())
    entry = begun(context.view, status, policy.kind, number, micro_batch, context.now, policy.keeps or None)
    status = _with_start_time(context, set_attempt(status, policy.kind, entry))
    return Plan(policy.waiting(context, status, Reason.STARTING, startup.BEGINNING))


def _ending(
    policy: AttemptPolicy, context: Context, status: FineTuneJobStatus, attempt: Attempt, child: ChildJobView | None
) -> Plan:
    """The operator ends the attempt, by deleting its child job. The attempt may have come to an end of its own
    before."""
    if child is None:
        evidence = judge_result(status.result, policy.kind, attempt.number)
        return _ended(policy, context, status, attempt, ending.verdict_of(attempt, evidence))
    pods = context.snapshot.pods_of(policy.kind, attempt.number)
    if ending.is_ended_for_user(attempt) and (child.finished or ending.have_ended(pods)):
        verdict = ending.verdict_of(attempt, _judged(policy, context, status, attempt, child))
        if verdict.end is not EndClass.DISRUPTION or (child.finished and all(pod.gone for pod in pods)):
            return _ended(policy, context, status, attempt, verdict)
    return Plan(status, None if child.deleting else Delete(child))


def _with_start_time(context: Context, status: FineTuneJobStatus) -> FineTuneJobStatus:
    """The status with the time of the first attempt. If somebody wiped the status, the child jobs that are left know
    best."""
    begun = [parse_time(entry.start_time) for kind in KINDS for entry in entries(status, kind)]
    earliest = min([*begun, *(child.created for child in context.snapshot.child_jobs)])
    return status.model_copy(update={"start_time": status.start_time or format_time(earliest)})


def _without_child_job(policy: AttemptPolicy, context: Context, status: FineTuneJobStatus, attempt: Attempt) -> Plan:
    """The child job is not created yet, or was deleted."""
    if attempt.running_time is not None or attempt.state == "Queued":
        verdict = Verdict(EndClass.RETRY, Reason.JOB_DELETED, _JOB_DELETED)
        return _ended(policy, context, status, attempt, verdict)
    if context.hold:
        return Plan(policy.waiting(context, status, Reason.NOT_SUPPORTED, context.hold))
    refusal = sentence(context.snapshot.refusal)
    if context.snapshot.invalid:
        message = f"{refusal} Correct what it names in the spec, and recreate the job."
        return _ended(policy, context, status, attempt, Verdict(EndClass.USER_ERROR, Reason.INVALID_SPEC, message))
    if refusal:
        message = f"{refusal} Check the namespace's quota and admission policies, and spec.resources."
        status = policy.waiting(context, status, Reason.PODS_REJECTED, message)
    deadline = start_deadline(attempt, context)
    if context.now >= deadline:
        # The status tells what kept the attempt from starting, also a failure that was written over it.
        reason, why = status.reason or Reason.STARTING, status.message or startup.BEGINNING
        return Plan(_expired(policy, context, status, attempt, reason, why))
    if refusal:
        return Plan(status, deadlines=(deadline, create_again(context, attempt)))
    return Plan(status, Create(children(policy.kind, context, status, attempt), context.differs))


def _under_way(
    policy: AttemptPolicy, context: Context, status: FineTuneJobStatus, attempt: Attempt, child: ChildJobView
) -> Plan:
    """The attempt's child job exists and is not finished."""
    nodes = policy.nodes(context)
    pods = context.snapshot.pods_of(policy.kind, attempt.number)
    stopped = startup.stopped(child, nodes)
    diagnosis = stopped or startup.diagnose(child, pods, context.snapshot.events, nodes)
    waits = queueing.wait(context, status, child, attempt, pods)
    attempt = queueing.followed(ending.note_disruption(attempt, pods, nodes), child, waits is not None)
    if diagnosis.running:
        attempt = running(attempt, context.now)
    status = set_attempt(status, policy.kind, attempt)
    if waits is not None:
        status = queueing.queued(context, policy.waiting(context, status, waits.reason, waits.message), waits)
        return Plan(status, deadlines=(queueing.look_again(context, status, child),))
    if not child.suspended:
        status = queueing.admitted(context, status, child)
    has_run = attempt.running_time is not None
    # While pods of a run end one after the other, it still runs. After a suspension others have to start first.
    runs = bool(pods) and all(pod.running or pod.gone or pod.exit_code is not None for pod in pods)
    if has_run and runs and not stopped and diagnosis.reason is not Reason.NODE_LOST:
        return _running(policy, context, status, attempt, child)
    avoids = "" if has_run else avoidance.explanation(attempt)
    status = policy.waiting(context, status, diagnosis.reason, " ".join(filter(None, [diagnosis.message, avoids])))
    if child.suspended:
        may_come = queueing.kueue_may_come(context.snapshot)
        return Plan(status, deadlines=(queueing.look_again(context, status, child),) if may_come else ())
    lacks_place = not has_run and diagnosis.reason in (Reason.UNSCHEDULABLE, Reason.PARTLY_SCHEDULED)
    if lacks_place and (gives_way := turns.gives_way(context, status)):
        return _end(policy, context, status, attempt, Reason.PARTLY_SCHEDULED, gives_way)
    again = avoidance.gives_up_at(attempt, pods_due(attempt, child.started)) if lacks_place else None
    if again is not None and context.now >= again:
        message = avoidance.no_place(attempt, diagnosis.message)
        return _end(policy, context, status, attempt, Reason.UNSCHEDULABLE, message)
    # Everything else comes by a watch: nobody looks again at a pod that waits.
    silent = frozenset() if stopped else startup.unexplained(child, pods, nodes)
    quiet_ends = parse_time(attempt.start_time) + timedelta(seconds=startup.QUIET_SECONDS)
    planned = Plan(status, events_about=silent)
    if silent and context.now < quiet_ends:
        planned = Plan(status, deadlines=(quiet_ends,))
    started = len(pods) >= nodes and all(pod.gone or pod.running or pod.exit_code is not None for pod in pods)
    if has_run or started:
        return planned
    deadline = start_deadline(attempt, context, child.started)
    if context.now >= deadline:
        return Plan(_expired(policy, context, status, attempt, diagnosis.reason, diagnosis.message))
    place = (*([again] if again else []), *(turns.look_again(context, pods) if lacks_place else ()))
    return replace(planned, deadlines=(deadline, *place, *planned.deadlines))


def _running(
    policy: AttemptPolicy, context: Context, status: FineTuneJobStatus, attempt: Attempt, child: ChildJobView
) -> Plan:
    """The attempt's pods run, and report or not."""
    pods, nodes = context.snapshot.pods_of(policy.kind, attempt.number), policy.nodes(context)
    facts = Running()
    if len(pods) < nodes:
        facts = replace(facts, pods=f"{len(pods)} of {nodes} pods are left. The attempt ends with them.")
    sign = reports.last_sign(status, policy.kind, attempt, pods)
    missed = reports.missed_at(context, sign)
    if silent := context.now >= missed:
        facts = replace(facts, reason=Reason.NOT_REPORTING, remarks=(reports.silence(context, sign, pods),))
    if not child.watched:
        facts = replace(facts, remarks=(*facts.remarks, startup.unwatched(child)))
    return Plan(policy.running(context, status, facts), deadlines=() if silent else (missed,))


def _expired(
    policy: AttemptPolicy, context: Context, status: FineTuneJobStatus, attempt: Attempt, reason: str, why: str
) -> FineTuneJobStatus:
    """The status in which the attempt is Ending because it did not start in time."""
    message = f"It did not start within {context.job.spec.start_deadline_seconds} s: {reason}: {why}"
    status = policy.waiting(context, status, Reason.ENDING, f"The operator ends the attempt: {message}")
    return set_attempt(status, policy.kind, ending.set_ending(attempt, Reason.START_DEADLINE_EXCEEDED, message))


def _judged(
    policy: AttemptPolicy, context: Context, status: FineTuneJobStatus, attempt: Attempt, child: ChildJobView
) -> Verdict:
    """From all evidence: the pods, their child job, and what trainer and operator wrote into the status."""
    progress = reports.own_progress(status, policy.kind, attempt)
    verdict = judge(
        child,
        context.snapshot.pods_of(policy.kind, attempt.number),
        status.result,
        policy.nodes(context),
        peak_bytes=progress.memory_bytes if progress else None,
        disruption=ending.disruption(attempt),
    )
    return queueing.not_its_fault(verdict, child)


def _ended(
    policy: AttemptPolicy,
    context: Context,
    status: FineTuneJobStatus,
    attempt: Attempt,
    verdict: Verdict,
    note: str = "",
) -> Plan:
    """The attempt has ended: it succeeded, or the job has failed, or the next attempt follows. `note`: what else the
    entry of the attempt says."""
    attempt = reports.with_restarts(status, policy.kind, attempt, verdict.result)
    if policy.kind == "train":
        pods, progress = (
            context.snapshot.pods_of("train", attempt.number),
            reports.own_progress(status, "train", attempt),
        )
        attempt = attempt.model_copy(update={"suspect": avoidance.suspect(attempt, verdict, pods, progress)})
    entry = ended(status, policy.kind, attempt, verdict, context.now, note)
    status = set_attempt(status, policy.kind, entry)
    if verdict.end is EndClass.DONE:
        return Plan(policy.done(context, status, verdict))
    micro_batch = first_micro_batch(attempt) or context.micro_batch
    if verdict.reason is Reason.DEADLINE_EXCEEDED:
        return _failed(context, status, deadline.failure(context, status))
    final = failure(context.job.spec, status, policy.kind, entry, verdict, micro_batch)
    stops = context.view.spec.get("stop") == "keep" and policy.kind == "train" and not policy.keeps
    kept = stops and verdict.end not in (EndClass.USER_ERROR, EndClass.FATAL)
    if final is not None and is_refused_again(status, policy.kind, final[0]):
        return Suspension(context.view, context.snapshot, context.now).hold(status, final[1])
    if final is not None and not kept:  # else the artifact of the newest checkpoint follows
        return _failed(context, status, final)
    begins = next_begins(entry, context.settings)
    with_less = less_memory(status, verdict, micro_batch)
    avoids = avoidance.announced(status, context.now) if policy.kind == "train" else ""
    message = backoff_message(entry, verdict, begins, policy.resumes(status), with_less, avoids)
    return Plan(policy.waiting(context, status, Reason.RETRY_BACKOFF, message), deadlines=(begins,))


def _failed(context: Context, status: FineTuneJobStatus, final: tuple[Reason, str]) -> Plan:
    return Plan(failed(status, *final, context.view.generation, context.now))


def _after(context: Context, seconds: float) -> datetime:
    return context.now + timedelta(seconds=seconds)
