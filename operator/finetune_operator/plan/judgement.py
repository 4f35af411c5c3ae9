"""How an attempt ended: the strongest of all that its pods, its Job, its trainer and its status have to say.

Called once per attempt, when its Job is Complete or Failed and no process of it is left. Pods may be gone by then (a
drained one's object is deleted at once), so no single source is enough. And where several pods train together, one that
is lost takes the others with it: what only followed from another's end must not be taken for the cause.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.exit_codes import REASONS, ExitCode
from finetune_api.status import OutOfMemory, Reason, Result
from pydantic import ValidationError

from finetune_operator.exit_classes import KILLED, TERMINATED, EndClass, end_class
from finetune_operator.observed import BatchView, PodView
from finetune_operator.plan.conditions import MESSAGE_MAX

_TEXTS: dict[Reason, str] = {
    Reason.COMPLETED: "It is complete.",
    Reason.DISRUPTED: "The attempt was disrupted (drain, preemption or eviction).",
    Reason.KILLED: "A process of the trainer was killed from outside.",
    Reason.UNKNOWN: "The attempt ended and left no trace of why.",
    Reason.JOB_DELETED: "The attempt's Job was deleted by somebody.",
    Reason.INTERNAL_ERROR: "The trainer failed by an error of its own; its log has the stack trace.",
    Reason.HUNG: "Nothing moved for too long; the log of each pod has the stacks of its processes.",
    Reason.SUPERSEDED: "The trainer found that another run owns its workspace folder.",
    Reason.GPU_OUT_OF_MEMORY: "The GPU's memory was exhausted.",
}

_TELLING: tuple[tuple[Reason, ...], ...] = (
    (Reason.OUT_OF_MEMORY, Reason.GPU_OUT_OF_MEMORY),
    (Reason.KILLED,),
    (Reason.SOURCE_UNREACHABLE,),
    (Reason.HUNG,),
    (Reason.INTERNAL_ERROR, Reason.UNKNOWN),
    (Reason.SUPERSEDED,),
)
"""Of ends with the same class, those that explain others first: whoever lost touch with a peer ends with an error of
its own, or hangs."""

_DOING = {
    "load": "loading the model",
    "train": "training",
    "evaluate": "evaluating",
    "generate": "generating",
    "save": "saving",
}
_NOT_THE_MICRO_BATCH = ("load", "evaluate", "generate", "save")
"""Phases whose need of memory a smaller micro-batch would not lower."""

_CULPRIT = re.compile(r"pod \S+/(\S+) (?:failed with exit code|has condition)", re.IGNORECASE)
"""Whom the Job controller names in the condition of a Job that a rule of its podFailurePolicy ended."""


@dataclass(frozen=True)
class Verdict:
    """The end of an attempt."""

    end: EndClass
    reason: Reason
    message: str
    exit_code: int | None = None
    result: Result | None = None


def judge(
    batch: BatchView,
    pods: Sequence[PodView],
    reported: Result | None,
    nodes: int,
    *,
    peak_bytes: int | None = None,
    disruption: str = "",
) -> Verdict:
    """The verdict on an attempt of so many pods.

    `reported` is status.result; one of another attempt is no evidence. `peak_bytes`: the host memory that was seen in
    use. `disruption`: what was noted when a pod was disrupted that may be gone by now.
    """
    if reported is not None and (reported.kind, reported.attempt) != (batch.kind, batch.attempt):
        reported = None
    ended = [pod for pod in pods if pod.exit_code is not None or pod.disruption is not None or pod.status_reason]
    done = [pod for pod in ended if pod.exit_code == ExitCode.DONE]
    if batch.complete or (len(done) >= nodes and len(done) == len(ended)):
        first = next((pod for pod in done if pod.rank == 0), None)
        result = _result(first) if first else None
        return _verdict(EndClass.DONE, Reason.COMPLETED, ExitCode.DONE, result or reported)
    failed = sorted((pod for pod in ended if pod.exit_code != ExitCode.DONE), key=lambda pod: (pod.ended, pod.rank))
    found = [_of_pod(pod, reported, nodes, peak_bytes) for pod in _causes(batch, failed)]
    found += _of_condition(batch, reported)
    if disruption:
        found.append(_verdict(EndClass.DISRUPTION, Reason.DISRUPTED, None, None, disruption))
    if not found and reported is not None:
        found.append(_of_code(reported.exit_code, reported))
    return min(found, key=_strength, default=_verdict(EndClass.RETRY, Reason.UNKNOWN, None, None))


def _strength(verdict: Verdict) -> tuple[int, int]:
    """Lower is stronger; of equals the first to end is the cause."""
    telling = next((place for place, reasons in enumerate(_TELLING) if verdict.reason in reasons), len(_TELLING))
    return list(EndClass).index(verdict.end), telling if verdict.end is EndClass.RETRY else 0


def _causes(batch: BatchView, failed: list[PodView]) -> list[PodView]:
    """Without pods that were deleted because another had failed, as the Job controller does: asked to end they save,
    and would look like a drain."""
    named = _CULPRIT.search(batch.failed_message)
    culprit = named[1] if named else ""
    causes = [pod for pod in failed if not pod.deleting or pod.disruption is not None or pod.name == culprit]
    return causes if causes or culprit else failed


def _of_pod(pod: PodView, reported: Result | None, nodes: int, peak_bytes: int | None) -> Verdict:
    who = pod.called(nodes)
    end = end_class(pod.exit_code) if pod.exit_code is not None else EndClass.RETRY
    if pod.disruption is not None and end not in (EndClass.USER_ERROR, EndClass.DISRUPTION):
        return _verdict(EndClass.DISRUPTION, Reason.DISRUPTED, pod.exit_code, None, f"{who}: {pod.disruption}")
    if pod.terminated_reason == "OOMKilled":
        text = _out_of_host_memory(pod, who, peak_bytes)
        return _verdict(end, Reason.OUT_OF_MEMORY, pod.exit_code, None, text)
    if pod.exit_code is None:
        why = f"{pod.status_reason}: {pod.terminated_message}".strip(": ")
        # Its node did away with it: more telling than what its peers say of that.
        return _verdict(EndClass.RETRY, Reason.KILLED, None, None, f"{who} ended without an exit code: {why}")
    result = _result(pod) or (reported if reported and reported.exit_code == pod.exit_code else None)
    return _of_code(pod.exit_code, result, f"{who} ended with exit code {pod.exit_code}.")


def _out_of_host_memory(pod: PodView, who: str, peak_bytes: int | None) -> str:
    limit = f"its limit of {pod.memory_limit}" if pod.memory_limit else "its node has"
    seen = f" (the last report of the first pod: {_gib(peak_bytes)})" if peak_bytes is not None else ""
    section = "prepare" if pod.kind == "prepare" else "resources"
    return f"{who} used more host memory than {limit} and was killed{seen}: raise spec.{section}.memory."


def _of_condition(batch: BatchView, reported: Result | None) -> list[Verdict]:
    """What the Job remembers: which rule of its podFailurePolicy ended it, by the first pod that failed."""
    if "has condition DisruptionTarget" in batch.failed_message:
        return [_verdict(EndClass.DISRUPTION, Reason.DISRUPTED, None, None, batch.failed_message)]
    match = re.search(r"exit code (\d+)", batch.failed_message)
    if not match:
        return []
    code = int(match[1])
    result = reported if reported and reported.exit_code == code else None
    return [_of_code(code, result, batch.failed_message)]


def _of_code(code: int, result: Result | None, otherwise: str = "") -> Verdict:
    """By an exit code, in the trainer's words where there are any."""
    end, reason = end_class(code), _reason(code)
    full = result.out_of_memory if result else None
    if end is EndClass.GPU_OUT_OF_MEMORY and full is not None:
        end = EndClass.RETRY if full.phase in _NOT_THE_MICRO_BATCH else end
        return _verdict(end, reason, code, result, _out_of_gpu_memory(full))
    text = None if result or not otherwise else f"{otherwise} {_TEXTS.get(reason, '')}".strip()
    return _verdict(end, reason, code, result, text)


def _out_of_gpu_memory(full: OutOfMemory) -> str:
    rows = "1 row" if full.micro_batch_size == 1 else f"{full.micro_batch_size} rows"
    measured = []
    if full.peak_bytes is not None:
        measured.append(f"its tensors held {_gib(full.peak_bytes)} at most")
    if full.free_bytes is not None:
        measured.append(f"{_gib(full.free_bytes)} were free")
    numbers = f" ({', '.join(measured)})" if measured else ""
    return f"The GPU of rank {full.rank} ran out of memory when {_DOING[full.phase]}, {rows} at once{numbers}."


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


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
