"""What to do next about a FineTuneJob: a pure function of the cluster's state, the settings and the time.

`plan` reads top to bottom like the list of phases. It returns the status that the job should have and at most one step,
or a `Need` for live reads, after which the caller asks again. The status is written first, and a step is taken only
when the status already says so. So the same function continues after a crash between any two writes.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api.status import ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.plan import lost_nodes, turns
from finetune_operator.plan.acceptance import POLL_SECONDS_MAX, Blocked, Invalid
from finetune_operator.plan.advance import advance
from finetune_operator.plan.attempts import current_kind, is_idle, unconfirmed
from finetune_operator.plan.completion import failed, terminal
from finetune_operator.plan.conditions import is_true, sentence, set_condition, set_phase, with_generation
from finetune_operator.plan.context import Context
from finetune_operator.plan.deadline import with_time_counted
from finetune_operator.plan.decision import Create, Delete, DeleteService, Need, Notify, Plan, SetProgress, missing
from finetune_operator.plan.failures import is_told, over
from finetune_operator.plan.gpu import with_gpu
from finetune_operator.plan.kstatus import with_kstatus
from finetune_operator.plan.notification import notify
from finetune_operator.plan.preparation import PREPARATION
from finetune_operator.plan.queueing import unread, without_quota
from finetune_operator.plan.renewal import Misfit, is_outdated, misfit, pin_again, renew
from finetune_operator.plan.reopening import acknowledged, is_retried, may_continue, reopened
from finetune_operator.plan.reports import due_progress
from finetune_operator.plan.retention import clean_up
from finetune_operator.plan.stopping import has_trained, nothing_to_keep, stop
from finetune_operator.plan.suspension import Suspension, is_resuming, under_way
from finetune_operator.plan.terms import Terms, agree, agree_again, recover_terms
from finetune_operator.plan.training import TRAINING
from finetune_operator.plan.workspace import check_workspace
from finetune_operator.settings import Settings
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import parse_time
from finetune_operator.views.snapshot import Read, Snapshot
from finetune_operator.views.status import condition_values, parse_status

UNDECIDED = (Reason.WAITING_FOR_JOB, Reason.NOT_SUPPORTED, Reason.PRESETS_INVALID)
"""Reasons for which a job is neither accepted nor refused."""
AgreeOnTerms = Callable[[JobView, FineTuneJobStatus, Snapshot, Settings], tuple[Terms, FineTuneJobStatus] | Need]


def plan(view: JobView, snapshot: Snapshot, now: datetime, settings: Settings) -> Plan | Need:
    """What to do about a FineTuneJob that is not being deleted (the garbage collector deletes its children)."""
    snapshot = lost_nodes.without_given_up(snapshot, now, settings)
    planned = _plan(view, snapshot, now, settings)
    if isinstance(planned, Need):
        return planned
    planned = replace(planned, deadlines=(*planned.deadlines, *lost_nodes.look_again(snapshot, settings)))
    planned = replace(planned, status=with_time_counted(planned.status, snapshot, now))
    if planned.step is None and is_told(planned.status):
        planned = replace(planned, status=over(planned.status, view.generation, now))
    planned = replace(planned, status=Suspension(view, snapshot, now).settle(planned.status))
    planned = replace(planned, status=without_quota(planned.status, snapshot, view.generation, now))
    status = with_kstatus(planned.status, condition_values(view.status), view.generation, now)
    status = with_generation(status, view.status.get("observedGeneration"))
    planned = replace(planned, status=with_gpu(view, status, parse_status(view.status), snapshot, now))
    progress = due_progress(planned.status)
    return planned if progress == planned.status.progress else replace(planned, step=SetProgress(progress))


def _plan(view: JobView, snapshot: Snapshot, now: datetime, settings: Settings) -> Plan | Need:
    status = parse_status(view.status)
    if not terminal(status):
        status = acknowledged(view, status)
        need = unconfirmed(status, snapshot, now) or unread(status, snapshot)
        need = need or turns.unknown_rivals(status, snapshot, now, settings)
        return need or _open(view, status, snapshot, now, settings, agree)
    retried = is_retried(view, status)
    if retried or may_continue(view, status, snapshot):
        if need := missing(snapshot, Read.JOB):
            return need
        planned = _open(view, reopened(view, status, now), snapshot, now, settings, agree_again)
        # What the watches show of other jobs is no reason to write: only what follows from it is.
        if retried or isinstance(planned, Need) or not terminal(planned.status):
            return planned
    status = acknowledged(view, status).model_copy(update={"observed_generation": view.generation})
    cleaned = clean_up(view, status, snapshot, now, settings)
    if isinstance(cleaned, Need) or cleaned.step is not None or cleaned.status != status:
        return cleaned
    return notify(view, status, snapshot, now, settings) or cleaned


def _open(
    view: JobView,
    status: FineTuneJobStatus,
    snapshot: Snapshot,
    now: datetime,
    settings: Settings,
    agree_on_terms: AgreeOnTerms,
) -> Plan | Need:
    """What to do about a job that has not ended."""
    recovered = recover_terms(status, snapshot)
    if isinstance(recovered, Need):
        return recovered
    status = recovered.model_copy(update={"observed_generation": view.generation})
    suspension = Suspension(view, snapshot, now)
    if suspension.is_requested:
        if (ends := suspension.end_attempt(status)) is not None:
            return ends
        if under_way(status, snapshot) is None:
            return suspension.rest(status, misfit(view, status, settings))
    if suspension.stops and under_way(status, snapshot) is None and not has_trained(suspension, status):
        return nothing_to_keep(suspension, status)
    try:
        agreed = _agree(suspension, status, settings, agree_on_terms)
        if not isinstance(agreed, tuple):
            return agreed
        terms, status = agreed
        starts = is_idle(status, snapshot) and not suspension.is_requested and not suspension.stops
        if starts and (need := check_workspace(terms.job, status, snapshot)):
            return need
    except Invalid as error:
        if isinstance(error, Misfit) or (is_resuming(status) and error.reason is Reason.INVALID_SPEC):
            return suspension.hold(status, str(error))
        status = set_condition(status, ConditionType.ACCEPTED, False, error.reason, str(error), view.generation, now)
        return Plan(failed(status, error.reason, str(error), view.generation, now))
    except Blocked as error:
        if is_resuming(status) and error.reason is Reason.PRESETS_INVALID:
            return suspension.wait(status, error.reason, str(error))
        return _blocked(view, status, error, now)
    context = Context(
        view, terms.job, terms.resolved, terms.document, terms.hold, terms.differs, snapshot, now, settings
    )
    accepted = _accepted(context, status, terms)
    if suspension.stops:
        return stop(context, accepted, suspension)
    planned = _advance(context, accepted, suspension)
    if not suspension.is_requested or terminal(planned.status):
        return planned
    if under_way(planned.status, snapshot) is None:
        return suspension.rest(planned.status, misfit(view, planned.status, settings))
    return replace(planned, status=status)


def _agree(
    suspension: Suspension, status: FineTuneJobStatus, settings: Settings, agree_on_terms: AgreeOnTerms
) -> tuple[Terms, FineTuneJobStatus] | Plan | Need:
    """The terms, renewed if the job is resumed; or the end of an attempt that has other terms than the job."""
    snapshot = suspension.snapshot
    agreed = agree_on_terms(suspension.view, status, snapshot, settings)
    if isinstance(agreed, Need) or suspension.is_requested:
        return agreed
    terms, status = agreed
    if suspension.stops:
        return pin_again(suspension, status, terms, settings) if under_way(status, snapshot) is None else agreed
    if not (is_resuming(status) or is_outdated(terms, status)):
        return agreed
    if under_way(status, snapshot) is None:
        return renew(suspension, status, terms, settings)
    # Resources may change only while the job is suspended, and the operator has missed that.
    ends = None if is_resuming(status) else suspension.end_attempt(status)
    return agreed if ends is None else ends


def _advance(context: Context, status: FineTuneJobStatus, suspension: Suspension) -> Plan:
    """Prepare, then train."""
    if current_kind(status, context.snapshot.child_jobs) == "prepare":
        preparing = advance(PREPARATION, context, status)
        prepared = is_true(preparing.status, ConditionType.PREPARED) and not terminal(preparing.status)
        if not prepared or suspension.is_requested:
            return preparing
        status = preparing.status
    return advance(TRAINING, context, status)


def _accepted(context: Context, status: FineTuneJobStatus, terms: Terms) -> FineTuneJobStatus:
    """With the condition Accepted. Once it is accepted, a job is never refused."""
    if terms.hold:
        return context.set_condition(status, ConditionType.ACCEPTED, None, Reason.NOT_SUPPORTED, terms.hold)
    if terms.objection:
        message = (
            f"The job was accepted earlier and continues as it was accepted. Now it would be refused:"
            f" {sentence(terms.objection)} Delete the job to stop it."
        )
        return context.set_condition(status, ConditionType.ACCEPTED, True, Reason.ACCEPTED_EARLIER, message)
    message = "The spec is valid."
    if terms.unknown:
        message += f" This release does not know these fields and ignores them: {', '.join(terms.unknown)}."
    return context.set_condition(status, ConditionType.ACCEPTED, True, Reason.ACCEPTED, message)


def _blocked(view: JobView, status: FineTuneJobStatus, error: Blocked, now: datetime) -> Plan:
    accepted = None if error.reason in UNDECIDED else False
    status = set_condition(status, ConditionType.ACCEPTED, accepted, error.reason, str(error), view.generation, now)
    attempt_may_run = status.resolved is not None and error.reason is Reason.NOT_SUPPORTED
    if not attempt_may_run:
        status = set_phase(status, Phase.PENDING, error.reason, str(error))
    if error.poll_seconds is None:
        return Plan(status)
    condition = next(c for c in status.conditions or [] if c.type == ConditionType.ACCEPTED)
    blocked_for = (now - parse_time(condition.last_transition_time)).total_seconds()
    pause = min(max(error.poll_seconds, blocked_for), POLL_SECONDS_MAX)
    return Plan(status, deadlines=(now + timedelta(seconds=pause),))


__all__ = ["Create", "Delete", "DeleteService", "Need", "Notify", "Plan", "SetProgress", "plan"]
