"""How an attempt can end, and what follows: the table that judging and the Job's podFailurePolicy share.

Both are in order of strength: among the pods of an attempt the strongest class decides. The Job controller goes through
its rules in that order, so the Job itself remembers the class where it outlives the pods.
"""

from dataclasses import dataclass
from enum import StrEnum

from finetune_api.exit_codes import ExitCode


class EndClass(StrEnum):
    """What follows from the end of an attempt, the strongest first."""

    DONE = "done"
    USER_ERROR = "user error"
    """Failed: another attempt would end the same way."""
    DISRUPTION = "disruption"
    """Not the job's fault: next attempt, uncounted."""
    FATAL = "fatal"
    """Failed: somebody has to do something first."""
    GPU_OUT_OF_MEMORY = "gpu out of memory"
    """Next attempt with a smaller micro-batch, uncounted. (What a smaller one would not help is a retry.)"""
    RETRY = "retry"
    """Next attempt, counted against backoffLimit."""


KILLED = 137
TERMINATED = 143


@dataclass(frozen=True)
class Row:
    """One row of the table; without codes it is the row of the pod condition DisruptionTarget."""

    end: EndClass
    codes: tuple[int, ...] = ()


ROWS: tuple[Row, ...] = (
    Row(
        EndClass.USER_ERROR, (ExitCode.INVALID_SPEC, ExitCode.INVALID_DATA, ExitCode.NOT_FOUND, ExitCode.ACCESS_DENIED)
    ),
    Row(EndClass.DISRUPTION, (ExitCode.DISRUPTED,)),
    Row(EndClass.DISRUPTION),
    Row(EndClass.FATAL, (ExitCode.DIVERGED, ExitCode.NO_SPACE, ExitCode.WORKSPACE_UNUSABLE)),
    Row(EndClass.GPU_OUT_OF_MEMORY, (ExitCode.GPU_OUT_OF_MEMORY,)),
    Row(EndClass.RETRY, (ExitCode.HUNG, ExitCode.SOURCE_UNREACHABLE, ExitCode.INTERNAL_ERROR)),
    Row(EndClass.RETRY, (KILLED, TERMINATED, ExitCode.SUPERSEDED)),
)


def end_class(code: int) -> EndClass:
    """The class of one exit code; what no row names is worth another try."""
    if code == ExitCode.DONE:
        return EndClass.DONE
    return next((row.end for row in ROWS if code in row.codes), EndClass.RETRY)
