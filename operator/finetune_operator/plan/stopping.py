"""Stop and keep: spec.stop ends the training now, and the artifact is made of what was trained.

A trainer that runs finds spec.stop in the answer to its own report and does the rest: the attempt succeeds. If no pod
trains, another attempt makes the artifact of the newest checkpoint, in one pod without GPUs. If nothing was trained,
nothing can be kept, and the job has Failed.
"""

from finetune_api.contract import keeps_on_cpu
from finetune_api.exit_codes import EndClass
from finetune_api.status import Attempt, ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.plan.advance import AttemptPolicy, Running, advance
from finetune_operator.plan.attempts import ended, newest_checkpoint, set_attempt
from finetune_operator.plan.completion import failed, succeeded
from finetune_operator.plan.conditions import set_phase
from finetune_operator.plan.context import Context
from finetune_operator.plan.decision import Need, Plan
from finetune_operator.plan.judgement import Verdict
from finetune_operator.plan.preparation import PREPARATION
from finetune_operator.plan.suspension import Suspension, under_way
from finetune_operator.plan.training import TRAINING

NOTHING = "The job was stopped (spec.stop) before it had trained anything, so there is nothing to make an artifact of."
ENDS = "The job was stopped (spec.stop)."
SEEN_WITH_A_REPORT = (
    "The job was stopped (spec.stop). The trainer learns of it with its next report, ends its step, and makes the"
    " artifact."
)


def has_trained(suspension: Suspension, status: FineTuneJobStatus) -> bool:
    """Whether a training attempt has run, so that a checkpoint may exist. The trainer looks for it."""
    listed = status.attempts or []
    if not listed:  # somebody may have wiped the status
        return bool(suspension.snapshot.child_jobs_of("train"))
    return status.checkpoint is not None or any(entry.running_time or entry.checkpoint_step for entry in listed)


def nothing_to_keep(suspension: Suspension, status: FineTuneJobStatus) -> Plan:
    """The job has Failed: it was stopped before it had trained."""
    return Plan(failed(status, Reason.NOTHING_TO_KEEP, NOTHING, suspension.view.generation, suspension.now))


def stop(context: Context, status: FineTuneJobStatus, suspension: Suspension) -> Plan | Need:
    """What to do next about a job that is to be stopped."""
    found = under_way(status, context.snapshot)
    if found is None:
        return advance(KEEPING, context, status)
    kind, attempt = found
    if kind == "prepare":
        return _without_preparing(context, status, suspension, attempt)
    if attempt.keeps:
        return advance(KEEPING, context, status)
    if attempt.running_time is None or context.view.spec.get("suspend") is True:
        # Nothing is trained yet; or the user does not wait until the trainer learns of it, as it may never do.
        ends = suspension.end_attempt(status, Reason.STOPPED_BY_USER)
        return advance(TRAINING, context, status) if ends is None else ends
    planned = advance(TRAINING, context, status)
    if planned.status.phase is Phase.RUNNING and planned.status.reason == Reason.RUNNING:
        status = set_phase(planned.status, Phase.RUNNING, Reason.STOPPED_BY_USER, SEEN_WITH_A_REPORT)
        return Plan(status, planned.step, planned.deadlines, planned.events_about)
    return planned


def _without_preparing(
    context: Context, status: FineTuneJobStatus, suspension: Suspension, attempt: Attempt
) -> Plan | Need:
    """The job prepares: nothing follows from that any more, unless it has just found an artifact. The child job is
    deleted as one that nobody needs."""
    child = context.snapshot.child_job("prepare", attempt.number)
    if child is not None and child.finished:
        return advance(PREPARATION, context, status)
    verdict = Verdict(EndClass.DISRUPTION, Reason.STOPPED_BY_USER, ENDS)
    status = set_attempt(status, "prepare", ended(status, "prepare", attempt, verdict, context.now))
    if not has_trained(suspension, status):
        return nothing_to_keep(suspension, status)
    # It prepared again, for other resources. What was trained needs none of them.
    status = context.set_condition(status, ConditionType.PREPARED, True, Reason.STOPPED_BY_USER, ENDS)
    return Plan(_waiting(context, status, Reason.ENDING, ENDS))


def _waiting(context: Context, status: FineTuneJobStatus, reason: Reason, message: str) -> FineTuneJobStatus:
    status = context.set_condition(status, ConditionType.RUNNING, False, reason, message)
    return set_phase(status, Phase.STARTING, reason, message)


def _running(context: Context, status: FineTuneJobStatus, facts: Running) -> FineTuneJobStatus:
    step = newest_checkpoint(status)
    reported = f" (last reported: step {step})" if step else ""
    message = f"The job was stopped (spec.stop). A pod makes the artifact of the newest checkpoint{reported}."
    reason = Reason.STOPPED_BY_USER if facts.reason is Reason.RUNNING else facts.reason
    status = context.set_condition(status, ConditionType.RUNNING, True, facts.reason, facts.with_remarks(facts.pods))
    return set_phase(status, Phase.RUNNING, reason, facts.with_remarks(message))


KEEPING = AttemptPolicy(
    kind="train",
    nodes=lambda context: 1 if keeps_on_cpu(context.resolved) else context.resolved.runtime.nodes,
    waiting=_waiting,
    running=_running,
    done=lambda context, status, verdict: succeeded(status, verdict, context.view.generation, context.now),
    resumes=lambda _status: "",
    keeps=True,
)
