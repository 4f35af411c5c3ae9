"""All ways in which a run can end early, as exceptions with the contract's exit codes.

TrainerError
├── InvalidSpec (64)        the job's settings contradict each other or the model
├── InvalidData (65)        a row or a file of the data is wrong
├── NotFound (66)           a model or data file does not exist
├── SourceUnreachable (69)  a source does not answer; another attempt may succeed
├── NoDevice (70)           the pod cannot use the GPUs that the job requests; another node may have them
├── RendezvousFailed (70)   some ranks did not join in time
├── GpuOutOfMemory (71)
├── Diverged (72)           the loss is no longer a number
├── NoSpace (73)            the workspace is full
├── WorkspaceUnusable (74)  the workspace cannot be written, or has results of another job
├── Preempted (75)          stopped by SIGTERM, after a save if there was time
├── AccessDenied (77)
└── Superseded (78)         a newer attempt runs, or nobody wants the result

Messages are for the user: what happened, why, and what to do. Any other exception is an internal error (70), and its
stack trace goes to the log. A hang (76) is none, because ranks that hang raise nothing: the launcher reports it.
"""

from typing import ClassVar

from finetune_api.exit_codes import REASONS, ExitCode
from finetune_api.status import Reason


class TrainerError(Exception):
    """The base of all. Never raised itself."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL_ERROR
    reason_override: ClassVar[Reason | None] = None
    needs_new_pods: ClassVar[bool] = False
    """Whether a restart in the same pods would end the same way."""

    @property
    def reason(self) -> Reason:
        """The exit code as a word."""
        return self.reason_override or REASONS[self.exit_code]


class InvalidSpec(TrainerError):
    exit_code = ExitCode.INVALID_SPEC


class InvalidData(TrainerError):
    exit_code = ExitCode.INVALID_DATA


class NotFound(TrainerError):
    exit_code = ExitCode.NOT_FOUND


class NothingToKeep(NotFound):
    reason_override = Reason.NOTHING_TO_KEEP


class SourceUnreachable(TrainerError):
    exit_code = ExitCode.SOURCE_UNREACHABLE


class NoDevice(TrainerError):
    exit_code = ExitCode.INTERNAL_ERROR
    needs_new_pods = True


class RendezvousFailed(TrainerError):
    exit_code = ExitCode.INTERNAL_ERROR
    needs_new_pods = True


class GpuOutOfMemory(TrainerError):
    exit_code = ExitCode.GPU_OUT_OF_MEMORY


class Diverged(TrainerError):
    exit_code = ExitCode.DIVERGED


class NoSpace(TrainerError):
    exit_code = ExitCode.NO_SPACE


class WorkspaceUnusable(TrainerError):
    exit_code = ExitCode.WORKSPACE_UNUSABLE


class WorkspaceOccupied(WorkspaceUnusable):
    reason_override = Reason.WORKSPACE_OCCUPIED


class Preempted(TrainerError):
    exit_code = ExitCode.DISRUPTED


class AccessDenied(TrainerError):
    exit_code = ExitCode.ACCESS_DENIED


class Superseded(TrainerError):
    exit_code = ExitCode.SUPERSEDED
