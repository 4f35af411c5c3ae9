"""Kueue: why a child job waits, in Kueue's own words, and what to do about it.

A child job of a queue is created suspended, and only Kueue starts it. Kueue may suspend it again (an eviction): the
same child job runs once more later, as another run of the same attempt. The operator never writes spec.suspend of a
child job. It reads the Workload only while the child job is suspended, at pauses that double: no watch shows a change
of the Workload, and each start and each eviction is a change of the child job.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.exit_codes import EndClass
from finetune_api.status import Attempt, ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.plan.attempts import current, current_kind, newest_checkpoint
from finetune_operator.plan.completion import terminal
from finetune_operator.plan.conditions import MESSAGE_MAX, find_condition, is_true, sentence, set_condition, set_phase
from finetune_operator.plan.context import Context
from finetune_operator.plan.decision import Need, missing
from finetune_operator.plan.judgement import Verdict
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.metadata import parse_time, section
from finetune_operator.views.pod import PodView
from finetune_operator.views.snapshot import Read, Snapshot
from finetune_operator.views.workload import Condition, QueueView, WorkloadView

POLL_SECONDS, POLL_SECONDS_MAX = 2.0, 300.0
"""Shortest and longest time between two looks at a Workload."""
TAKEN_UP_SECONDS = 15.0
"""How long Kueue has to make a Workload before the message says that it does not."""
CLOCKS_DIFFER_SECONDS = 60
"""A child job of a queue that began later than its pods ran, by more than clocks differ, has begun again."""
_UNUSABLE = ("Misconfigured", "Suspended", "Inadmissible")
"""Kueue's reasons that are about the queue: it does not exist, or somebody has stopped it."""
_FIELDS = {"prepare": "spec.prepare.queue", "train": "spec.queue"}


@dataclass(frozen=True)
class Wait:
    """Why Kueue does not run a child job."""

    reason: Reason
    message: str
    condition: Condition | None
    """The condition QuotaReserved, in Kueue's words where it has said anything. None: Kueue may have nothing to do with
    the child job."""


def unread(status: FineTuneJobStatus, snapshot: Snapshot) -> Need | None:
    """The need for what Kueue says about a child job that is suspended."""
    kind = current_kind(status, snapshot.child_jobs)
    attempt = current(status, kind)
    if attempt is None or attempt.state in ("Ending", "Ended"):
        return None
    child = snapshot.child_job(kind, attempt.number)
    if child is None or not child.suspended or child.finished or child.deleting:
        return None
    return missing(snapshot, Read.WORKLOAD, kind, attempt)


def wait(
    context: Context, status: FineTuneJobStatus, child: ChildJobView, attempt: Attempt, pods: Sequence[PodView]
) -> Wait | None:
    """Why Kueue keeps a child job suspended. None: it is not suspended, or not by Kueue."""
    if not child.suspended or child.deleting:
        return None
    queue = context.snapshot.queue or QueueView(unknown="no Kueue")
    workload = queue.workload
    if workload is None:
        if child.queue:
            return _without_workload(context, child, queue)
        return None if attempt.running_time else _not_taken_up(context, child, queue)
    reserved = workload.condition("QuotaReserved") or Condition(
        False, "Pending", "Kueue has not looked at the Workload yet."
    )
    evicted = workload.condition("Evicted")
    if not workload.active:
        return Wait(Reason.DEACTIVATED, _deactivated(context, workload), _not(evicted or reserved))
    if evicted is not None and evicted.true:
        return Wait(Reason.EVICTED, _evicted(status, evicted, reserved, workload, pods), _not(reserved))
    if reserved.true:
        return _reserved(child, workload, reserved)
    if not workload.queue:
        return Wait(Reason.QUEUE_UNUSABLE, _without_queue(child), reserved)
    why = sentence(reserved.message)
    if reserved.reason in _UNUSABLE:
        advice = f"Ask who looks after the queues, or name another queue ({_change(_FIELDS[child.kind])})."
        return Wait(Reason.QUEUE_UNUSABLE, f"Job {child.name} cannot be admitted: {why} {advice}", reserved)
    return Wait(
        Reason.WAITING_FOR_QUOTA,
        f"Job {child.name} waits in queue {workload.queue}{_place(workload)}: {why}",
        reserved,
    )


def followed(attempt: Attempt, child: ChildJobView, waits: bool) -> Attempt:
    """The entry of an attempt as its child job is suspended, evicted and admitted."""
    if attempt.state == "Ending":
        return attempt
    ran = parse_time(attempt.running_time) if attempt.running_time else None
    margin = timedelta(seconds=CLOCKS_DIFFER_SECONDS)
    again = bool(child.queue) and ran is not None and child.started is not None and child.started > ran + margin
    if ran is not None and (waits or again):
        attempt = attempt.model_copy(
            update={"evictions": (attempt.evictions or 0) + 1, "running_time": None, "state": "Starting"}
        )
    if waits:
        return attempt.model_copy(update={"state": "Queued"})
    return attempt.model_copy(update={"state": "Starting"}) if attempt.state == "Queued" else attempt


def queued(context: Context, status: FineTuneJobStatus, why: Wait) -> FineTuneJobStatus:
    """The status of a job whose child job waits."""
    if why.condition is not None:
        status = set_condition(
            status,
            ConditionType.QUOTA_RESERVED,
            why.condition.true,
            why.condition.reason or why.reason,
            why.condition.message,
            context.view.generation,
            context.now,
        )
    return set_phase(status, Phase.QUEUED, why.reason, why.message)


def admitted(context: Context, status: FineTuneJobStatus, child: ChildJobView) -> FineTuneJobStatus:
    """The status of a job whose child job has been started by Kueue, if Kueue has to do with it."""
    if not child.queue and find_condition(status, ConditionType.QUOTA_RESERVED) is None:
        return status
    message = f"Kueue has admitted Job {child.name}{f' from queue {child.queue}' if child.queue else ''}."
    return context.set_condition(status, ConditionType.QUOTA_RESERVED, True, Reason.ADMITTED, message)


def not_its_fault(verdict: Verdict, child: ChildJobView) -> Verdict:
    """The verdict on an attempt whose child job was suspended while its pods ran: they were asked to end, and an exit
    code may only follow from that. Kueue does so with Jobs that it has put into a queue by itself."""
    if not child.suspended or verdict.end is not EndClass.RETRY:
        return verdict
    message = f"Job {child.name} was suspended while its pods ran. {verdict.message}"
    return replace(verdict, end=EndClass.DISRUPTION, reason=Reason.DISRUPTED, message=message[:MESSAGE_MAX])


def kueue_may_come(snapshot: Snapshot) -> bool:
    """Whether Kueue may still make a Workload for a child job that is suspended, which no watch shows."""
    return snapshot.queue is not None and not snapshot.queue.unknown


def look_again(context: Context, status: FineTuneJobStatus, child: ChildJobView) -> datetime:
    """When to read the Workload again: after as long as it has waited so far."""
    found = find_condition(status, ConditionType.QUOTA_RESERVED)
    since = parse_time(found.last_transition_time) if found and found.status == "False" else child.created
    waited = (context.now - since).total_seconds()
    return context.now + timedelta(seconds=min(max(waited, POLL_SECONDS), POLL_SECONDS_MAX))


def without_quota(status: FineTuneJobStatus, snapshot: Snapshot, generation: int, now: datetime) -> FineTuneJobStatus:
    """The status, in which a job without an attempt under way has no quota."""
    if not is_true(status, ConditionType.QUOTA_RESERVED):
        return status
    attempt = current(status, current_kind(status, snapshot.child_jobs))
    if terminal(status) is None and attempt is not None and attempt.state != "Ended":
        return status
    reason = status.reason or Reason.ENDING
    message = "No child job is under way, so none has quota."
    return set_condition(status, ConditionType.QUOTA_RESERVED, False, reason, message, generation, now)


def _not(condition: Condition) -> Condition:
    """Kueue's words about a Workload whose pods it takes away, although its quota is not free yet."""
    return Condition(False, condition.reason, condition.message)


def _not_taken_up(context: Context, child: ChildJobView, queue: QueueView) -> Wait | None:
    """Why a child job is suspended that names no queue, as long as it may be Kueue that manages all Jobs."""
    if queue.unknown or (context.now - child.created).total_seconds() >= TAKEN_UP_SECONDS:
        return None
    return Wait(Reason.NO_WORKLOAD, f"Job {child.name} is suspended, and Kueue has not said why yet.", None)


def _without_workload(context: Context, child: ChildJobView, queue: QueueView) -> Wait:
    name, namespace, field = child.name, child.key[0], _FIELDS[child.kind]
    if queue.unknown == "no right":
        reason, message = (
            Reason.WAITING_FOR_QUOTA,
            f"Job {name} waits in queue {child.queue}. The operator may not read Kueue's Workloads, so it cannot say"
            " why. Turn on the chart value kueue.enabled, or look yourself: kubectl get workloads"
            f" -n {namespace} -l kueue.x-k8s.io/job-uid={child.uid}",
        )
    elif queue.unknown == "no Kueue":
        spec = context.view.spec
        own = (spec if child.kind == "train" else section(spec, "prepare")).get("queue")
        leave = f"the job out of the queue ({_change(field, 'remove')})"
        if not own:
            leave = "the queue out of the presets, then suspend and resume the job"
        reason, message = (
            Reason.NO_WORKLOAD,
            f"The {'job names' if own else 'presets name'} queue {child.queue}, but this cluster has no Kueue, so"
            f" nothing runs. Install Kueue, or take {leave}.",
        )
    elif (context.now - child.created).total_seconds() < TAKEN_UP_SECONDS:
        reason, message = Reason.NO_WORKLOAD, f"Kueue has not taken up Job {name} of queue {child.queue} yet."
    else:
        reason, message = (
            Reason.NO_WORKLOAD,
            f"Kueue has made no Workload for Job {name} of queue {child.queue}, so nothing runs. Check that Kueue runs,"
            f" that its integration batch/job is on, and that it manages namespace {namespace}.",
        )
    return Wait(reason, message, Condition(False, reason, message))


def _change(field: str, verb: str = "change") -> str:
    return f"set spec.suspend to true, {verb} {field}, then set suspend to false"


def _without_queue(child: ChildJobView) -> str:
    return (
        f"Kueue manages every Job of namespace {child.key[0]}, but Job {child.name} names no queue, so Kueue does not"
        f" start it. Name one ({_change(_FIELDS[child.kind], 'set')})."
    )


def _deactivated(context: Context, workload: WorkloadView) -> str:
    evicted = workload.condition("Evicted")
    why = f" ({sentence(evicted.message).rstrip('.')})" if evicted is not None and evicted.message else ""
    return (
        f"Workload {workload.name} is deactivated{why}: it has no quota, and nothing runs. To queue it again: kubectl"
        f" patch workload {workload.name} -n {context.view.namespace} --type merge -p"
        ' \'{"spec":{"active":true}}\''
    )


def _evicted(
    status: FineTuneJobStatus, evicted: Condition, reserved: Condition, workload: WorkloadView, pods: Sequence[PodView]
) -> str:
    why = f"Kueue took the pods away ({evicted.reason}: {sentence(evicted.message).rstrip('.')})."
    if any(not pod.gone for pod in pods):
        return f"{why} They save and end."
    step = newest_checkpoint_step(status)
    resumes = f"continues from the newest checkpoint (last reported: step {step})" if step else "runs again"
    waits = f" {sentence(reserved.message)}" if reserved.message not in ("", evicted.message) else ""
    return f"{why} The attempt {resumes} when queue {workload.queue} admits it{_place(workload)}.{waits}"


def newest_checkpoint_step(status: FineTuneJobStatus) -> int | None:
    """The last step that a trainer of the job has reported as saved."""
    return status.checkpoint.step if status.checkpoint else newest_checkpoint(status)


def _reserved(child: ChildJobView, workload: WorkloadView, reserved: Condition) -> Wait:
    admission = workload.condition("Admitted")
    if admission is not None and admission.true:
        return Wait(Reason.ADMITTED, f"Kueue has admitted Job {child.name} and is about to start it.", reserved)
    why = "; ".join(workload.checks) or (admission.message if admission else "")
    message = f"Job {child.name} has quota in queue {workload.queue} and waits for Kueue's admission checks"
    return Wait(Reason.WAITING_FOR_ADMISSION, f"{message}: {sentence(why)}" if why else f"{message}.", reserved)


def _place(workload: WorkloadView) -> str:
    return f" (place {workload.position})" if workload.position is not None else ""
