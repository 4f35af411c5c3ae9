"""Training: pods with GPUs, one for each node, until the artifact exists."""

from dataclasses import replace

from finetune_api.micro_batch import first_micro_batch
from finetune_api.status import Attempt, ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.plan.advance import AttemptPolicy, Running
from finetune_operator.plan.attempts import current, newest_checkpoint, set_attempt
from finetune_operator.plan.avoidance import straggling
from finetune_operator.plan.completion import succeeded
from finetune_operator.plan.conditions import sentence, set_phase
from finetune_operator.plan.context import Context
from finetune_operator.plan.judgement import Verdict
from finetune_operator.plan.reports import own_progress, resumed


def _waiting(context: Context, status: FineTuneJobStatus, reason: Reason, message: str) -> FineTuneJobStatus:
    status = context.set_condition(status, ConditionType.RUNNING, False, reason, message)
    return set_phase(status, Phase.STARTING, reason, message)


def _running(context: Context, status: FineTuneJobStatus, facts: Running) -> FineTuneJobStatus:
    attempt = current(status, "train")
    assert attempt is not None
    attempt = resumed(status, attempt)
    pods, progress = context.snapshot.pods_of("train", attempt.number), own_progress(status, "train", attempt)
    # Noted at once: when the attempt has ended, its pods may be gone.
    attempt = attempt.model_copy(update={"suspect": straggling(pods, progress)})
    status = set_attempt(status, "train", attempt)
    words, message = _training(attempt), facts.pods
    if restarting := _restarting(status, attempt):
        words = message = restarting
    reason = Reason.RESTARTING if restarting and facts.reason is Reason.RUNNING else facts.reason
    if not restarting and (straggler := _straggler(context, status, attempt)):
        facts = replace(facts, remarks=(straggler, *facts.remarks))
        reason = Reason.STRAGGLER if reason is Reason.RUNNING else reason
    status = context.set_condition(status, ConditionType.RUNNING, True, reason, facts.with_remarks(message))
    return set_phase(status, Phase.RUNNING, reason, facts.with_remarks(words))


def _restarting(status: FineTuneJobStatus, attempt: Attempt) -> str:
    """That the trainer starts its processes again in the same pods, from its report of that until it trains; otherwise
    empty."""
    progress, restart = own_progress(status, "train", attempt), attempt.restarts
    if restart is None or progress is None or progress.activity == "Training":
        return ""
    smaller = first_micro_batch(restart)
    size = f", with a micro-batch of {smaller}" if smaller else ""
    size += ", with all layers recomputed" if restart.recompute else ""
    return (
        f"Restarting in place after {restart.reason} (restart {restart.number} of attempt {attempt.number}{size}):"
        f" {sentence(restart.message)}"
    )


def _straggler(context: Context, status: FineTuneJobStatus, attempt: Attempt) -> str:
    """Which rank the others wait for, and on which node; empty if no rank straggles. Without the ratio, which changes
    with each report: status.progress has it."""
    progress = own_progress(status, "train", attempt)
    slowest = progress.slowest_rank if progress else None
    if slowest is None or slowest.since_step is None:
        return ""
    pods = context.snapshot.pods_of("train", attempt.number)
    pod = next((pod for pod in pods if pod.rank == slowest.node_rank), None)
    place = f"node {pod.node}, pod {pod.name}" if pod else f"node rank {slowest.node_rank}"
    return (
        f"Rank {slowest.rank} ({place}) has been slower than the others since step {slowest.since_step}, and they wait"
        " for it (status.progress.slowestRank). If it stays slow, check the GPU, or suspend and resume the job: the"
        " next attempt avoids the node."
    )


def _training(attempt: Attempt) -> str:
    """From where it trains, as soon as its trainer has reported that."""
    step, number, restart = attempt.checkpoint_step, attempt.number, attempt.restarts
    again = f", restarted in place {_times(restart.number)} (last after {restart.reason})," if restart else ""
    if step is None:
        return "Training." if number == 1 and not again else f"Training: attempt {number}{again.rstrip(',')}."
    start = f"resumes from checkpoint step {step}" if step else "starts from the beginning"
    return f"Training: attempt {number}{again} {start}."


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _done(context: Context, status: FineTuneJobStatus, verdict: Verdict) -> FineTuneJobStatus:
    return succeeded(status, verdict, context.view.generation, context.now)


def _resumes(status: FineTuneJobStatus) -> str:
    """Only what is known: the trainer may have saved a newer checkpoint than it could report."""
    step = newest_checkpoint(status)
    return f" from the newest checkpoint (last reported: step {step})" if step else ""


TRAINING = AttemptPolicy(
    kind="train",
    nodes=lambda context: context.resolved.runtime.nodes,
    waiting=_waiting,
    running=_running,
    done=_done,
    resumes=_resumes,
)
