"""What to do next about one FineTuneJob: a pure function of what is seen, the settings and the time.

`plan` reads top to bottom like the list of phases. It gives the status that the job should have, and at most one step;
the status is written first, and a step is taken only when the status already says so. A crash between any two writes
therefore leaves a state from which the same function goes on.
"""

from datetime import datetime

from finetune_api.status import ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.observed import JobView, Observed
from finetune_operator.plan.acceptance import HeldUp, Refused, accept, pinned, typed
from finetune_operator.plan.attempts import kind_due
from finetune_operator.plan.case import Case, Create, Delete, Plan
from finetune_operator.plan.completion import failed
from finetune_operator.plan.conditions import is_terminal, is_true, summarized, with_condition
from finetune_operator.plan.course import go_on
from finetune_operator.plan.preparation import PREPARATION
from finetune_operator.plan.references import follow
from finetune_operator.plan.training import TRAINING
from finetune_operator.plan.workspace import check_shareable
from finetune_operator.settings import Settings


def plan(view: JobView, observed: Observed, now: datetime, settings: Settings) -> Plan:
    """What to do about a FineTuneJob that is not being deleted (the garbage collector sees to those)."""
    status = FineTuneJobStatus.model_validate(view.status)
    if is_terminal(status):
        return _after_the_end(status, observed)
    status = status.model_copy(update={"observed_generation": view.generation})
    if observed.fixed is not None:
        known = {"references": observed.fixed.references or None, "resolved": observed.fixed.resolved}
        status = status.model_copy(update=known)
    try:
        job = typed(view, settings)
        references = follow(job, status, observed.others)
        resolved = accept(job, references, settings, observed.gpu_memory_bytes)
        check_shareable(job, observed)
    except Refused as refused:
        reason, why = refused.reason, str(refused)
        status = with_condition(status, ConditionType.ACCEPTED, False, reason, why, view.generation, now)
        return Plan(failed(status, reason, why, view.generation, now))
    except HeldUp as held:
        reason, why = held.reason, str(held)
        accepted = None if reason is Reason.WAITING_FOR_JOB else False
        status = with_condition(status, ConditionType.ACCEPTED, accepted, reason, why, view.generation, now)
        return Plan(summarized(status, Phase.PENDING, reason, why), look_again=held.look_again)
    case = Case(view, job, resolved, observed, now, settings)
    fixed = {"references": references or None, "resolved": pinned(status, job, resolved, settings)}
    status = status.model_copy(update=fixed)
    status = case.said(status, ConditionType.ACCEPTED, True, Reason.ACCEPTED, "The spec can be run.")

    if kind_due(status, observed.batches) == "prepare":
        preparing = go_on(PREPARATION, case, status)
        if not is_true(preparing.status, ConditionType.PREPARED):
            return preparing
        status = preparing.status
    return go_on(TRAINING, case, status)


def _after_the_end(status: FineTuneJobStatus, observed: Observed) -> Plan:
    """Nothing is written any more; only a Job that still runs for nobody is ended."""
    leftover = next((batch for batch in observed.batches if not batch.finished and not batch.deleting), None)
    return Plan(status, Delete(leftover) if leftover else None)


__all__ = ["Create", "Delete", "Plan", "plan"]
