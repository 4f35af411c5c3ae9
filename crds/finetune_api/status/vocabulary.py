"""Phases, condition types and reasons: the words of a status that tools match on."""

from enum import StrEnum


class Phase(StrEnum):
    """Summary of the conditions for people."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """Types of conditions. Succeeded and Failed are terminal: once True, they never change, but for a
    Failed job that is re-opened (spec.retry)."""

    ACCEPTED = "Accepted"
    PREPARED = "Prepared"
    QUOTA_RESERVED = "QuotaReserved"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    # What kstatus reads, and so Flux and Helm: True while the job has not ended; True if it cannot continue by itself.
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Reason(StrEnum):
    """Causes of conditions, phases and ends of attempts. Tools match on them: a new reason is a change of the API."""

    ACCEPTED = "Accepted"
    WAITING_FOR_JOB = "WaitingForJob"
    ACCEPTED_EARLIER = "AcceptedEarlier"
    NOT_SUPPORTED = "NotSupported"
    INVALID_SPEC = "InvalidSpec"
    # The ConfigMap of the namespace, not the job, has a mistake.
    PRESETS_INVALID = "PresetsInvalid"
    WORKSPACE_NOT_SHAREABLE = "WorkspaceNotShareable"
    WORKSPACE_MISMATCH = "WorkspaceMismatch"
    FETCHING = "Fetching"
    VALIDATING = "Validating"
    TOKENIZING = "Tokenizing"
    NO_WORKLOAD = "NoWorkload"
    WAITING_FOR_QUOTA = "WaitingForQuota"
    # Kueue keeps a child job suspended. The condition QuotaReserved has Kueue's own reason and words.
    QUEUE_UNUSABLE = "QueueUnusable"
    WAITING_FOR_ADMISSION = "WaitingForAdmission"
    EVICTED = "Evicted"
    DEACTIVATED = "Deactivated"
    ADMITTED = "Admitted"
    STARTING = "Starting"
    UNSCHEDULABLE = "Unschedulable"
    PULLING_IMAGE = "PullingImage"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONFIG_MISSING = "ConfigMissing"
    VOLUME_NOT_MOUNTED = "VolumeNotMounted"
    PODS_REJECTED = "PodsRejected"
    PARTLY_SCHEDULED = "PartlyScheduled"
    NODE_LOST = "NodeLost"
    # A container that somebody else put into the pod. It keeps an attempt from starting, or ends it.
    OTHER_CONTAINER_FAILED = "OtherContainerFailed"
    JOB_SUSPENDED = "JobSuspended"
    NOT_REPORTING = "NotReporting"
    # The job cannot continue, and it is not the job's fault.
    API_SERVER_ERROR = "APIServerError"
    OPERATOR_ERROR = "OperatorError"
    RETRY_BACKOFF = "RetryBackoff"
    REOPENED = "Reopened"
    ENDING = "Ending"
    RUNNING = "Running"
    # The ranks end and start again in the same pods.
    RESTARTING = "Restarting"
    # A rank computes slower than the others, which wait for it.
    STRAGGLER = "Straggler"
    SUSPENDED_BY_USER = "SuspendedByUser"
    RESUMED = "Resumed"
    COMPLETED = "Completed"
    STOPPED_BY_USER = "StoppedByUser"
    NOTHING_TO_KEEP = "NothingToKeep"
    INVALID_DATA = "InvalidData"
    NOT_FOUND = "NotFound"
    ACCESS_DENIED = "AccessDenied"
    DIVERGED = "Diverged"
    NO_SPACE = "NoSpace"
    WORKSPACE_UNUSABLE = "WorkspaceUnusable"
    WORKSPACE_OCCUPIED = "WorkspaceOccupied"
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    NO_PROGRESS = "NoProgress"
    START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    DEPENDENCY_FAILED = "DependencyFailed"
    # How an attempt ended, if another attempt may follow.
    DISRUPTED = "Disrupted"
    SUPERSEDED = "Superseded"
    HUNG = "Hung"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    INTERNAL_ERROR = "InternalError"
    # An error that a GPU or the link between GPUs reports.
    HARDWARE_ERROR = "HardwareError"
    OUT_OF_MEMORY = "OutOfMemory"
    KILLED = "Killed"
    JOB_DELETED = "JobDeleted"
    UNKNOWN = "Unknown"
