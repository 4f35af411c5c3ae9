"""Training: pods with GPUs, one a node, until the artifact is made."""

from finetune_api.status import ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.plan.attempts import current, going_on, newest_checkpoint, with_attempt
from finetune_operator.plan.case import Case
from finetune_operator.plan.completion import succeeded
from finetune_operator.plan.conditions import summarized
from finetune_operator.plan.course import Course
from finetune_operator.plan.judgement import Verdict


def _waiting(case: Case, status: FineTuneJobStatus, reason: Reason, message: str) -> FineTuneJobStatus:
    status = case.said(status, ConditionType.RUNNING, False, reason, message)
    return summarized(status, Phase.STARTING, reason, message)


def _running(case: Case, status: FineTuneJobStatus) -> FineTuneJobStatus:
    attempt = current(status, "train")
    assert attempt is not None
    status = with_attempt(status, "train", going_on(status, attempt))
    later = attempt.number > 1
    message = f"Training: attempt {attempt.number}{_resumes(status)}." if later else "Training."
    status = case.said(status, ConditionType.RUNNING, True, Reason.RUNNING, "All pods run.")
    return summarized(status, Phase.RUNNING, Reason.RUNNING, message)


def _done(case: Case, status: FineTuneJobStatus, verdict: Verdict) -> FineTuneJobStatus:
    return succeeded(status, verdict, case.view.generation, case.now)


def _resumes(status: FineTuneJobStatus) -> str:
    step = newest_checkpoint(status)
    return " begins from the start" if step is None else f" goes on from checkpoint step {step}"


TRAINING = Course(
    kind="train",
    nodes=lambda case: case.resolved.runtime.nodes,
    waiting=_waiting,
    running=_running,
    done=_done,
    resumes=_resumes,
)
