"""How an attempt ended: the strongest evidence among its pods, its child job, its trainer and its status.

Called once per attempt, when its child job is Complete or Failed and none of its processes is left, or when only
containers of others are left. Pods may be gone by then (a drained pod's object is deleted at once), so no single source
is enough. Where several pods train together, a lost pod takes the others with it: an end that only followed from
another must not be taken for the cause. The phase of a pod is no evidence: containers of others decide it, too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.exit_codes import KILLED, REASONS, TERMINATED, EndClass, ExitCode, end_class, end_class_of
from finetune_api.micro_batch import MicroBatch, first_micro_batch
from finetune_api.status import OutOfMemory, Reason, Result
from pydantic import ValidationError

from finetune_operator.names import Kind
from finetune_operator.plan import containers
from finetune_operator.plan.conditions import MESSAGE_MAX, sentence
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.pod import PodView

_TEXTS: dict[Reason, str] = {
    Reason.COMPLETED: "The attempt is complete.",
    Reason.DISRUPTED: "The attempt was disrupted (drain, preemption or eviction).",
    Reason.KILLED: "A process of the trainer was killed from outside. Check the events of the pod and of its node.",
    Reason.UNKNOWN: "The attempt ended, and neither pod nor child job says why. Check the events of the namespace.",
    Reason.INTERNAL_ERROR: "The trainer failed with an internal error. See the stack trace in its log.",
    Reason.HUNG: "The trainer made no progress for too long. See the stacks of the processes in the log of each pod.",
    Reason.SUPERSEDED: "The trainer found that another run owns its directory in the workspace.",
    Reason.GPU_OUT_OF_MEMORY: "The GPU's memory was exhausted.",
}

_OWN_LIMIT = re.compile(
    r"TerminationByKubelet: .*?(Usage of EmptyDir volume .* exceeds the limit .*"
    r"|Pod ephemeral local storage usage exceeds .*|Container .* exceeded its local ephemeral storage limit .*)",
    re.DOTALL,
)
"""What the kubelet says when it evicts a pod that used more local storage than the pod itself allows. Another node
would not help. Pressure on the node is different: any pod can be evicted for it."""

_PRECEDENCE: tuple[tuple[Reason, ...], ...] = (
    (Reason.OUT_OF_MEMORY, Reason.GPU_OUT_OF_MEMORY, Reason.NO_SPACE),
    (Reason.HARDWARE_ERROR,),
    (Reason.KILLED, Reason.OTHER_CONTAINER_FAILED),
    (Reason.SOURCE_UNREACHABLE,),
    (Reason.HUNG,),
    (Reason.INTERNAL_ERROR, Reason.UNKNOWN),
    (Reason.SUPERSEDED,),
)
"""Among ends of the same class, causes before their effects: a process that loses its peer fails with an internal
error, or hangs."""

_ACTIVITIES = {
    "load": "loading the model",
    "train": "training",
    "evaluate": "evaluating",
    "generate": "generating",
    "save": "saving",
}
_CULPRIT = re.compile(r"pod \S+/(\S+) (?:failed with exit code|has condition)", re.IGNORECASE)
"""The pod that the Job controller names in the condition when a rule of podFailurePolicy ends a Job."""


@dataclass(frozen=True)
class Verdict:
    """The end of an attempt."""

    end: EndClass
    reason: Reason
    message: str
    exit_code: int | None = None
    result: Result | None = None


def judge(
    child: ChildJobView,
    pods: Sequence[PodView],
    reported: Result | None,
    nodes: int,
    *,
    peak_bytes: int | None = None,
    disruption: str = "",
) -> Verdict:
    """The verdict on an attempt of so many pods.

    `reported` is status.result; the result of another attempt is no evidence. `peak_bytes`: the host memory that the
    trainer last reported. `disruption`: what was noted when a pod was disrupted, which may be gone by now.
    """
    if reported is not None and (reported.kind, reported.attempt) != (child.kind, child.attempt):
        reported = None
    ended = [pod for pod in pods if _says_something(pod)]
    done = [pod for pod in ended if pod.exit_code == ExitCode.DONE]
    if child.complete or (len(done) >= nodes and len(done) == len(ended)):
        if reported is None or reported.exit_code != ExitCode.DONE:  # a termination message may have had to be cut
            first = next((pod for pod in done if pod.rank == 0), None)
            reported = (_result(first) if first else None) or reported
        return _verdict(EndClass.DONE, Reason.COMPLETED, ExitCode.DONE, reported)
    failed = [pod for pod in ended if pod.exit_code != ExitCode.DONE]
    failed.sort(key=lambda pod: (pod.ended or pod.created, pod.rank))
    evidence = [_of_other_container(pod, nodes) for pod in done if _failed_by_others(pod)]
    evidence += [_of_pod(pod, child, reported, nodes, peak_bytes) for pod in _causes(child, failed)]
    evidence += _of_condition(child, reported, [disruption, *(f"{pod.name}: {pod.disruption}" for pod in failed)])
    if disruption:
        evidence.append(_of_disruption(None, disruption))
    if not evidence and reported is not None:
        evidence.append(_of_code(reported.exit_code, reported))
    return min(evidence, key=_strength, default=_verdict(EndClass.RETRY, Reason.UNKNOWN, None, None))


def judge_result(reported: Result | None, kind: Kind, attempt: int) -> Verdict | None:
    """The verdict on an attempt of which only the trainer's result in the status is left. None: that is not there, or
    is another attempt's."""
    if reported is None or (reported.kind, reported.attempt) != (kind, attempt):
        return None
    if reported.exit_code == ExitCode.DONE:
        return _verdict(EndClass.DONE, Reason.COMPLETED, ExitCode.DONE, reported)
    return _of_code(reported.exit_code, reported)


def _says_something(pod: PodView) -> bool:
    """Whether the pod is evidence of how the attempt ended."""
    ended = pod.exit_code is not None or pod.disruption is not None or bool(pod.status_reason)
    return ended or (pod.gone and containers.failed(pod) is not None)


def _failed_by_others(pod: PodView) -> bool:
    """Whether a pod whose trainer is done failed by itself: the end of a deleted pod may be an error of others."""
    return pod.phase == "Failed" and not pod.deleting and containers.failed(pod) is not None


def _of_other_container(pod: PodView, nodes: int) -> Verdict:
    """From a pod that failed although its trainer was done. The Job controller then ends the pods that still train,
    which is not their fault."""
    other = containers.failed(pod)
    assert other is not None
    return _verdict(EndClass.DISRUPTION, Reason.DISRUPTED, None, None, containers.failure(pod, other, nodes))


def _strength(verdict: Verdict) -> tuple[int, int]:
    """Lower is stronger. Among equals the first to end is the cause."""
    ranks = (rank for rank, reasons in enumerate(_PRECEDENCE) if verdict.reason in reasons)
    precedence = next(ranks, len(_PRECEDENCE))
    return list(EndClass).index(verdict.end), precedence if verdict.end is EndClass.RETRY else 0


def _causes(child: ChildJobView, failed: list[PodView]) -> list[PodView]:
    """Without the pods that the Job controller deleted because another pod had failed: they save and exit, which looks
    like a drain."""
    match = _CULPRIT.search(child.failed_message)
    culprit = match[1] if match else ""
    causes = [pod for pod in failed if not pod.deleting or pod.disruption is not None or pod.name == culprit]
    return causes if causes or culprit else failed


def _of_pod(pod: PodView, child: ChildJobView, reported: Result | None, nodes: int, peak_bytes: int | None) -> Verdict:
    title = pod.title(nodes)
    end = end_class(pod.exit_code) if pod.exit_code is not None else EndClass.RETRY
    if pod.disruption is not None and end not in (EndClass.USER_ERROR, EndClass.DISRUPTION):
        return _of_disruption(pod.exit_code, f"{title}: {pod.disruption}")
    if pod.terminated_reason == "OOMKilled":
        text = _out_of_host_memory(pod, child, title, peak_bytes)
        return _verdict(end, Reason.OUT_OF_MEMORY, pod.exit_code, None, text)
    other = containers.failed(pod)
    if pod.exit_code is None and other is not None and not pod.status_reason:
        text = containers.failure(pod, other, nodes)
        return _verdict(EndClass.RETRY, Reason.OTHER_CONTAINER_FAILED, None, None, text)
    if pod.exit_code is None:
        why = f"{pod.status_reason}: {pod.terminated_message}".strip(": ")
        # The node removed the pod: a better explanation than the errors of its peers.
        return _verdict(EndClass.RETRY, Reason.KILLED, None, None, f"{title} ended without an exit code: {why}")
    result = _result(pod) or (reported if reported and reported.exit_code == pod.exit_code else None)
    return _of_code(pod.exit_code, result, f"{title} ended with exit code {pod.exit_code}.")


def own_limit(disruption: str) -> str:
    """The kubelet's words if it evicted a pod for the pod's own limit of local storage, else nothing."""
    match = _OWN_LIMIT.search(disruption)
    return match[1].strip() if match else ""


def _of_disruption(code: int | None, text: str) -> Verdict:
    """From what is known about a disrupted pod: its title, and the reason and message of its condition."""
    words = own_limit(text)
    if not words:
        return _verdict(EndClass.DISRUPTION, Reason.DISRUPTED, code, None, text)
    title = text.split(": TerminationByKubelet", 1)[0]
    advice = (
        "Write less to the local disk: large files belong in the workspace. The limit of /tmp (finetune-tmp) is the"
        " chart's trainer.temporaryStorage; the job sets the limits of its own volumes (spec.resources.volumes)."
    )
    return _verdict(
        EndClass.RETRY,
        Reason.NO_SPACE,
        code,
        None,
        f"{title} was evicted for a limit of its own: {sentence(words)} {advice}",
    )


def _out_of_host_memory(pod: PodView, child: ChildJobView, title: str, peak_bytes: int | None) -> str:
    limit = f"its limit of {pod.memory_limit}" if pod.memory_limit else "its node has"
    report = f" (last report of rank 0: {_gib(peak_bytes)})" if peak_bytes is not None else ""
    field = f"spec.{'prepare' if pod.kind == 'prepare' else 'resources'}.memory"
    advice = f"Raise {field}."
    if child.memory_limit and pod.memory_limit and not containers.equal(child.memory_limit, pod.memory_limit):
        advice = (
            f"The job asks for {child.memory_limit} ({field}), but the cluster changed the limit (a LimitRange, an"
            " autoscaler or a webhook): change it there."
        )
    return f"{title} used more host memory than {limit} and was killed{report}. {advice}"


def _of_condition(child: ChildJobView, reported: Result | None, disruptions: Sequence[str]) -> list[Verdict]:
    """What the child job remembers: the rule of its podFailurePolicy that ended it, and the first pod that failed.
    `disruptions`: names of pods with what disrupted them, which says more."""
    if "has condition DisruptionTarget" in child.failed_message:
        culprit = _CULPRIT.search(child.failed_message)
        if culprit and any(culprit[1] in text and own_limit(text) for text in disruptions):
            return []
        return [_verdict(EndClass.DISRUPTION, Reason.DISRUPTED, None, None, child.failed_message)]
    match = re.search(r"exit code (\d+)", child.failed_message)
    if not match:
        return []
    code = int(match[1])
    result = reported if reported and reported.exit_code == code else None
    return [_of_code(code, result, child.failed_message)]


def _of_code(code: int, result: Result | None, otherwise: str = "") -> Verdict:
    """From an exit code, with the trainer's message if it left one."""
    shortage = result.out_of_memory if result else None
    end, reason = end_class_of(code, shortage), _reason(code)
    if code == ExitCode.GPU_OUT_OF_MEMORY and shortage is not None:
        return _verdict(end, reason, code, result, _out_of_gpu_memory(shortage))
    text = None if result or not otherwise else f"{sentence(otherwise)} {_TEXTS.get(reason, '')}".strip()
    return _verdict(end, reason, code, result, text)


def _out_of_gpu_memory(shortage: OutOfMemory) -> str:
    held = first_micro_batch(shortage) or MicroBatch(1)
    rows = f"at most {held}" if held.unit == "tokens" else "1 row" if held.size == 1 else f"{held} rows"
    measured = []
    if shortage.peak_bytes is not None:
        measured.append(f"its tensors held {_gib(shortage.peak_bytes)} at most")
    if shortage.free_bytes is not None:
        measured.append(f"{_gib(shortage.free_bytes)} were free")
    numbers = f" ({', '.join(measured)})" if measured else ""
    activity = _ACTIVITIES.get(shortage.phase, shortage.phase)
    return f"The GPU of rank {shortage.rank} ran out of memory when {activity}, {rows} at once{numbers}."


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
    """The trainer's result from the termination message; None if it did not write any."""
    try:
        return Result.model_validate_json(pod.terminated_message) if pod.terminated_message else None
    except ValidationError:
        return None
