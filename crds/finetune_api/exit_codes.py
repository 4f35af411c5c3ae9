"""Exit codes of the trainer, by which a pod reports to the operator what happened, and their classes.

The operator turns each class of codes into a rule of the child job's podFailurePolicy, so that the child job records
the class even after its pods are deleted. The operator decides what follows from each class (``plan/retries.py``).
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Literal

from finetune_api.micro_batch import MicroBatch
from finetune_api.status import OutOfMemory, Reason
from finetune_api.training import Recompute


class ExitCode(IntEnum):
    """Exit code of the trainer's container."""

    DONE = 0
    """The run succeeded."""
    INVALID_SPEC = 64
    """The spec cannot be run as it is."""
    INVALID_DATA = 65
    """The data does not have the declared format, or has too many invalid rows."""
    NOT_FOUND = 66
    """A model, a data set or an artifact does not exist."""
    SOURCE_UNREACHABLE = 69
    """A hub or bucket does not answer."""
    INTERNAL_ERROR = 70
    """Any other error."""
    GPU_OUT_OF_MEMORY = 71
    """A GPU has too little memory."""
    DIVERGED = 72
    """The loss is not finite."""
    NO_SPACE = 73
    """The workspace is full."""
    WORKSPACE_UNUSABLE = 74
    """The workspace cannot be written, or holds the results of another job."""
    DISRUPTED = 75
    """The pod was asked to end (SIGTERM) and saved its state."""
    HUNG = 76
    """Ranks stopped making progress."""
    ACCESS_DENIED = 77
    """A hub, bucket or service refused the credentials."""
    SUPERSEDED = 78
    """A later run owns the job's directory, or nobody wants the result."""


REASONS: dict[ExitCode, Reason] = {
    ExitCode.DONE: Reason.COMPLETED,
    ExitCode.INVALID_SPEC: Reason.INVALID_SPEC,
    ExitCode.INVALID_DATA: Reason.INVALID_DATA,
    ExitCode.NOT_FOUND: Reason.NOT_FOUND,
    ExitCode.SOURCE_UNREACHABLE: Reason.SOURCE_UNREACHABLE,
    ExitCode.INTERNAL_ERROR: Reason.INTERNAL_ERROR,
    ExitCode.GPU_OUT_OF_MEMORY: Reason.GPU_OUT_OF_MEMORY,
    ExitCode.DIVERGED: Reason.DIVERGED,
    ExitCode.NO_SPACE: Reason.NO_SPACE,
    ExitCode.WORKSPACE_UNUSABLE: Reason.WORKSPACE_UNUSABLE,
    ExitCode.DISRUPTED: Reason.DISRUPTED,
    ExitCode.HUNG: Reason.HUNG,
    ExitCode.ACCESS_DENIED: Reason.ACCESS_DENIED,
    ExitCode.SUPERSEDED: Reason.SUPERSEDED,
}

KILLED = 137
TERMINATED = 143


class EndClass(StrEnum):
    """What follows from the end of an attempt, the strongest first."""

    DONE = "done"
    USER_ERROR = "user error"
    """Failed: another attempt would end the same way."""
    DISRUPTION = "disruption"
    """Not the job's fault: the next attempt is not counted."""
    FATAL = "fatal"
    """Failed: somebody has to act first."""
    GPU_OUT_OF_MEMORY = "gpu out of memory"
    """The next attempt has a smaller micro-batch and is not counted. If that would not help, the class is RETRY."""
    RETRY = "retry"
    """The next attempt counts against backoffLimit."""


@dataclass(frozen=True)
class EndRule:
    """A class and its exit codes. The rule without codes stands for the pod condition DisruptionTarget."""

    end: EndClass
    codes: tuple[int, ...] = ()


END_RULES: tuple[EndRule, ...] = (
    EndRule(
        EndClass.USER_ERROR,
        (ExitCode.INVALID_SPEC, ExitCode.INVALID_DATA, ExitCode.NOT_FOUND, ExitCode.ACCESS_DENIED),
    ),
    EndRule(EndClass.DISRUPTION, (ExitCode.DISRUPTED,)),
    EndRule(EndClass.DISRUPTION),
    EndRule(EndClass.FATAL, (ExitCode.DIVERGED, ExitCode.NO_SPACE, ExitCode.WORKSPACE_UNUSABLE)),
    EndRule(EndClass.GPU_OUT_OF_MEMORY, (ExitCode.GPU_OUT_OF_MEMORY,)),
    EndRule(EndClass.RETRY, (ExitCode.HUNG, ExitCode.SOURCE_UNREACHABLE, ExitCode.INTERNAL_ERROR)),
    EndRule(EndClass.RETRY, (KILLED, TERMINATED, ExitCode.SUPERSEDED)),
)
"""Rules from the strongest to the weakest. The strongest decides among the ranks of a pod and the pods of an attempt.
The Job controller evaluates podFailurePolicy in this order, so the child job records the same class."""


def end_class(code: int) -> EndClass:
    """The class of an exit code. A code that no rule names is worth another attempt."""
    if code == ExitCode.DONE:
        return EndClass.DONE
    return next((rule.end for rule in END_RULES if code in rule.codes), EndClass.RETRY)


def end_class_of(code: int, shortage: OutOfMemory | None) -> EndClass:
    """The class of an end whose details are known. A GPU that ran out of memory outside of a training step would do so
    with a smaller micro-batch, too."""
    end = end_class(code)
    if end is EndClass.GPU_OUT_OF_MEMORY and shortage is not None and shortage.phase != "train":
        return EndClass.RETRY
    return end


def recomputes_more(
    mode: Recompute, before: Literal["all"] | None, shortage: OutOfMemory | None, size: MicroBatch, longest: int
) -> bool:
    """Whether all layers are recomputed after a GPU ran out of memory in a training step: at the smallest micro-batch,
    with ``mode`` auto, unless all were. ``before``: as attempts[].recompute; ``longest``: as in `MicroBatch.half`."""
    had_all = before == "all" or (shortage is not None and shortage.recompute == "all")
    return mode == "auto" and not had_all and size.is_smallest(longest)


def strongest(codes: list[int]) -> int:
    """The code that decides among the codes of several ranks: 0 if all are 0, otherwise the code of the strongest rule.
    Codes that are not the trainer's own come last."""
    failed = [code for code in codes if code != ExitCode.DONE]
    own = [code for code in failed if code in set(ExitCode)]
    return min(own or failed, key=_strength, default=ExitCode.DONE)


def _strength(code: int) -> int:
    return next((position for position, rule in enumerate(END_RULES) if code in rule.codes), len(END_RULES))
