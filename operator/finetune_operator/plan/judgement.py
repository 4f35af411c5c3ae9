"""How an attempt ended: decided from its pods, else from its Job's condition, else from the trainer's own result.

Called once per attempt, when its Job is Complete or Failed and no process of it is left.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.exit_codes import REASONS, ExitCode
from finetune_api.status import Reason, Result
from pydantic import ValidationError

from finetune_operator.exit_classes import KILLED, ROWS, TERMINATED, EndClass, end_class
from finetune_operator.observed import BatchView, PodView

MESSAGE_MAX = 1024

_TEXTS: dict[Reason, str] = {
    Reason.COMPLETED: "It is complete.",
    Reason.DISRUPTED: "The attempt was disrupted (drain, preemption or eviction).",
    Reason.KILLED: "A process of the trainer was killed from outside.",
    Reason.UNKNOWN: "The attempt ended and left no trace of why.",
    Reason.JOB_DELETED: "The attempt's Job was deleted by somebody.",
    Reason.INTERNAL_ERROR: "The trainer failed by an error of its own; its log has the stack trace.",
    Reason.SUPERSEDED: "The trainer found that another run owns its workspace folder.",
    Reason.GPU_OUT_OF_MEMORY: "The GPU's memory was exhausted.",
}


@dataclass(frozen=True)
class Verdict:
    """The end of an attempt."""

    end: EndClass
    reason: Reason
    message: str
    exit_code: int | None = None
    result: Result | None = None


def judge(batch: BatchView, pods: Sequence[PodView], reported: Result | None, ranks: int) -> Verdict:
    """The verdict. `reported` is status.result; one of another attempt is no evidence."""
    if reported is not None and (reported.kind, reported.attempt) != (batch.kind, batch.attempt):
        reported = None
    ended = [pod for pod in pods if pod.exit_code is not None or pod.disruption is not None or pod.status_reason]
    done = [pod for pod in ended if pod.exit_code == ExitCode.DONE]
    if batch.complete or (len(done) >= ranks and len(done) == len(ended)):
        main = min(done, key=lambda pod: pod.rank, default=None)
        result = _result(main) if main else None
        return _verdict(EndClass.DONE, Reason.COMPLETED, ExitCode.DONE, result or reported)
    failed = [pod for pod in ended if pod.exit_code != ExitCode.DONE]
    if failed:
        return _of_pods(failed, reported)
    return _of_condition(batch, reported)


def _of_pods(pods: Sequence[PodView], reported: Result | None) -> Verdict:
    """The first row that fits any rank."""
    for row in ROWS:
        for pod in pods:
            if pod.exit_code in row.codes or (not row.codes and pod.disruption is not None):
                return _of_pod(pod, row.end, reported)
    return _of_pod(pods[0], EndClass.RETRY, reported)


def _of_pod(pod: PodView, end: EndClass, reported: Result | None) -> Verdict:
    result = _result(pod) or (reported if reported and reported.exit_code == pod.exit_code else None)
    who = f"rank {pod.rank} (pod {pod.name})"
    if end is EndClass.DISRUPTION and pod.exit_code != ExitCode.DISRUPTED:
        return _verdict(end, Reason.DISRUPTED, pod.exit_code, None, f"{who}: {pod.disruption}")
    if pod.terminated_reason == "OOMKilled":
        return _verdict(
            end,
            Reason.OUT_OF_MEMORY,
            pod.exit_code,
            None,
            f"{who} used more host memory than its limit of {pod.memory_limit or 'the node'} and was killed:"
            f" raise spec.{'prepare' if pod.kind == 'prepare' else 'resources'}.memory.",
        )
    if pod.exit_code is None:
        why = f"{pod.status_reason}: {pod.terminated_message}".strip(": ")
        return _verdict(EndClass.RETRY, Reason.UNKNOWN, None, None, f"{who} ended without an exit code: {why}")
    reason = _reason(pod.exit_code)
    text = None if result else f"{who} ended with exit code {pod.exit_code}. {_TEXTS.get(reason, '')}"
    return _verdict(end, reason, pod.exit_code, result, text)


def _of_condition(batch: BatchView, reported: Result | None) -> Verdict:
    """The pods are gone. The Job remembers which rule of its podFailurePolicy ended it."""
    if "has condition DisruptionTarget" in batch.failed_message:
        return _verdict(EndClass.DISRUPTION, Reason.DISRUPTED, None, None, batch.failed_message)
    match = re.search(r"exit code (\d+)", batch.failed_message)
    if match:
        code = int(match[1])
        result = reported if reported and reported.exit_code == code else None
        return _verdict(end_class(code), _reason(code), code, result, None if result else batch.failed_message)
    if reported is not None:
        return _verdict(end_class(reported.exit_code), _reason(reported.exit_code), reported.exit_code, reported)
    return _verdict(EndClass.RETRY, Reason.UNKNOWN, None, None)


def _verdict(
    end: EndClass, reason: Reason, code: int | None, result: Result | None, text: str | None = None
) -> Verdict:
    message = text or (result.message if result else "") or _TEXTS.get(reason, str(reason))
    if result is not None and result.reason in Reason.__members__.values() and code == result.exit_code:
        reason = Reason(result.reason)
    return Verdict(end, reason, message[:MESSAGE_MAX], code, result)


def _reason(code: int) -> Reason:
    if code in (KILLED, TERMINATED):
        return Reason.KILLED
    return {int(known): reason for known, reason in REASONS.items()}.get(code, Reason.UNKNOWN)


def _result(pod: PodView) -> Result | None:
    """The trainer's words from the termination message; None when it didn't get that far."""
    try:
        return Result.model_validate_json(pod.terminated_message) if pod.terminated_message else None
    except ValidationError:
        return None
