"""Every way in which a run can end early, as an exception with the contract's exit code.

TrainerError
├── InvalidSpec (64)        the job's settings don't fit together, or don't fit the model
├── InvalidData (65)        a row or a file of the data is wrong
├── NotFound (66)           a model or data file isn't where the job says
├── SourceUnreachable (69)  a source doesn't answer; another attempt may succeed
├── NoDevice (70)           the GPUs that the job asked for can't be seen; another node may have them
├── RendezvousFailed (70)   some of the run's ranks never came
├── GpuOutOfMemory (71)
├── Diverged (72)           the loss is no longer a number
├── NoSpace (73)            the workspace is full
├── WorkspaceUnusable (74)  the workspace can't be written, or holds another job's results
├── Preempted (75)          told to stop, and saved as far as there was time
├── Hung (76)               a rank stood still for too long
├── AccessDenied (77)
└── Superseded (78)         a newer attempt runs, or nobody wants the result

Messages are for the user: what was given, what is allowed, what to do. Anything else that is raised is an internal
error (70), and its stack trace goes to the log.
"""

from typing import ClassVar

from finetune_api.exit_codes import REASONS, ExitCode
from finetune_api.status import Reason


class TrainerError(Exception):
    """Base of all; never raised itself."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL_ERROR
    reason_override: ClassVar[Reason | None] = None

    @property
    def reason(self) -> Reason:
        """The exit code as one word."""
        return self.reason_override or REASONS[self.exit_code]


class InvalidSpec(TrainerError):
    exit_code = ExitCode.INVALID_SPEC


class InvalidData(TrainerError):
    exit_code = ExitCode.INVALID_DATA


class NotFound(TrainerError):
    exit_code = ExitCode.NOT_FOUND


class SourceUnreachable(TrainerError):
    exit_code = ExitCode.SOURCE_UNREACHABLE


class NoDevice(TrainerError):
    exit_code = ExitCode.INTERNAL_ERROR


class RendezvousFailed(TrainerError):
    exit_code = ExitCode.INTERNAL_ERROR


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


class Hung(TrainerError):
    exit_code = ExitCode.HUNG


class AccessDenied(TrainerError):
    exit_code = ExitCode.ACCESS_DENIED


class Superseded(TrainerError):
    exit_code = ExitCode.SUPERSEDED
