"""Exit codes of the trainer: how a pod tells the operator what happened.

The operator puts each class into a rule of the Job's podFailurePolicy, so that the Job itself remembers the class when
the pod's object is gone. What follows from each is decided in the operator (``plan/attempts.py``).
"""

from enum import IntEnum

from finetune_api.status import Reason


class ExitCode(IntEnum):
    """What the container ends with."""

    DONE = 0
    INVALID_SPEC = 64
    INVALID_DATA = 65
    NOT_FOUND = 66
    SOURCE_UNREACHABLE = 69
    INTERNAL_ERROR = 70
    GPU_OUT_OF_MEMORY = 71
    DIVERGED = 72
    NO_SPACE = 73
    WORKSPACE_UNUSABLE = 74
    DISRUPTED = 75
    HUNG = 76
    ACCESS_DENIED = 77
    SUPERSEDED = 78


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

SEVERITY: tuple[tuple[ExitCode, ...], ...] = (
    (ExitCode.INVALID_SPEC, ExitCode.INVALID_DATA, ExitCode.NOT_FOUND, ExitCode.ACCESS_DENIED),
    (ExitCode.DISRUPTED,),
    (ExitCode.DIVERGED, ExitCode.NO_SPACE, ExitCode.WORKSPACE_UNUSABLE),
    (ExitCode.GPU_OUT_OF_MEMORY,),
    (ExitCode.HUNG, ExitCode.SOURCE_UNREACHABLE, ExitCode.INTERNAL_ERROR),
    (ExitCode.SUPERSEDED,),
)
"""Classes from strongest to weakest: when ranks end differently, the strongest class is what happened."""


def strongest(codes: list[int]) -> int:
    """The code that decides among several ranks': 0 only if all are, else by `SEVERITY`, an unnamed code last."""
    failed = [code for code in codes if code != 0]
    if not failed:
        return ExitCode.DONE
    for group in SEVERITY:
        for code in failed:
            if code in group:
                return code
    return failed[0]
