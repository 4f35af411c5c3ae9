"""Whose turn it is, by the reason of a job's phase, and what to do if the message alone does not say it."""

from typing import NamedTuple


class Turn(NamedTuple):
    """Who acts next, and what somebody can do."""

    whose: str
    advice: str = ""


OPERATOR = "the operator"
TRAINER = "the trainer"
KUBERNETES = "Kubernetes"
YOU = "you"
ADMINISTRATOR = "an administrator of the cluster"
OTHERS = "another job"
NOBODY = "nobody"

_RETRY = "Then run `finetune retry {name}`, which continues from the newest checkpoint."
_NEW = "The spec cannot be changed: correct the manifest, delete this job, and create it again."

TURNS: dict[str, Turn] = {
    "": Turn(OPERATOR, "If it does not look at the job within a minute, run `finetune doctor`."),
    "Accepted": Turn(OPERATOR),
    "WaitingForJob": Turn(OTHERS, "`finetune tree {name}` shows the jobs that it waits for."),
    "AcceptedEarlier": Turn(OPERATOR),
    "NotSupported": Turn(ADMINISTRATOR, "Upgrade the operator to the release of the CRD."),
    "InvalidSpec": Turn(YOU, _NEW),
    "PresetsInvalid": Turn(ADMINISTRATOR, "Correct the ConfigMap finetune-presets of the namespace."),
    "WorkspaceNotShareable": Turn(YOU, _NEW),
    "WorkspaceMismatch": Turn(YOU),
    "Fetching": Turn(TRAINER),
    "Validating": Turn(TRAINER),
    "Tokenizing": Turn(TRAINER),
    "NoWorkload": Turn(ADMINISTRATOR, "Check that Kueue runs and manages batch/v1 Jobs in this namespace."),
    "QueueUnusable": Turn(YOU, "`kubectl get localqueues` shows the queues of the namespace."),
    "WaitingForAdmission": Turn(KUBERNETES, "Kueue's admission checks have to agree, such as new nodes being ready."),
    "Evicted": Turn(KUBERNETES, "Kueue starts the same attempt again when there is room. It continues where it saved."),
    "Deactivated": Turn(ADMINISTRATOR, "Kueue does not start it until its Workload is active again."),
    "Admitted": Turn(KUBERNETES),
    "WaitingForQuota": Turn(KUBERNETES, "The job waits in its queue until other jobs free GPUs."),
    "Starting": Turn(KUBERNETES),
    "Unschedulable": Turn(KUBERNETES, "If no node of that kind is expected, ask for less in spec.resources."),
    "PullingImage": Turn(KUBERNETES, "The trainer's image has gigabytes, which takes minutes on a new node."),
    "ImagePullFailed": Turn(YOU, "Check spec.resources.image and imagePullSecrets."),
    "ConfigMissing": Turn(YOU, "Create the Secret or ConfigMap that the message names; the pod then starts by itself."),
    "VolumeNotMounted": Turn(KUBERNETES, "Check the claims: `kubectl get pvc`."),
    "PodsRejected": Turn(ADMINISTRATOR, "A quota or a policy of the namespace refuses the pods."),
    "PartlyScheduled": Turn(KUBERNETES, "All pods of the job need a node at the same time."),
    "NodeLost": Turn(KUBERNETES, "The next attempt starts when the lost pods are gone."),
    "OtherContainerFailed": Turn(ADMINISTRATOR, "A container that others put into the pod fails."),
    "JobSuspended": Turn(ADMINISTRATOR, "Somebody or something suspended the batch/v1 Job."),
    "NotReporting": Turn(TRAINER, "The pods work without reports. `finetune logs {name}` shows what they do."),
    "APIServerError": Turn(OPERATOR, "The operator tries again by itself. If it lasts, run `finetune doctor`."),
    "OperatorError": Turn(ADMINISTRATOR, "The log of the operator has the error."),
    "RetryBackoff": Turn(OPERATOR, "It starts the next attempt after a pause."),
    "Reopened": Turn(OPERATOR),
    "Ending": Turn(TRAINER, "It saves a checkpoint, and ends."),
    "Running": Turn(TRAINER),
    "Straggler": Turn(ADMINISTRATOR, "All ranks wait for the slowest. Look at the node that the message names."),
    "Restarting": Turn(TRAINER, "The processes start again in the same pods."),
    "SuspendedByUser": Turn(YOU, "`finetune resume {name}` continues it."),
    "Resumed": Turn(OPERATOR),
    "Completed": Turn(NOBODY),
    "StoppedByUser": Turn(NOBODY),
    "NothingToKeep": Turn(YOU, "No checkpoint existed when the job was stopped."),
    "InvalidData": Turn(YOU, "Correct the rows that the message names. " + _RETRY),
    "NotFound": Turn(YOU, "Check the names and paths in the message. " + _RETRY),
    "AccessDenied": Turn(YOU, "Check the Secret that spec.secrets names, and that the account may read it. " + _RETRY),
    "Diverged": Turn(YOU, "Lower training.learningRate, and create the job under another name."),
    "NoSpace": Turn(YOU, "Free space on the workspace, or make its claim larger. " + _RETRY),
    "WorkspaceUnusable": Turn(YOU, "Check the claim of the workspace. " + _RETRY),
    "WorkspaceOccupied": Turn(YOU, "Use another metadata.name, or another workspace."),
    "GPUOutOfMemory": Turn(YOU, "`finetune estimate` shows which method and micro-batch fit."),
    "BackoffLimitExceeded": Turn(YOU, "The message has the last failure, `finetune logs {name}` more of it. " + _RETRY),
    "NoProgress": Turn(ADMINISTRATOR, "The pods are interrupted faster than they save. " + _RETRY),
    "StartDeadlineExceeded": Turn(YOU, "Ask for less, or raise spec.startDeadlineSeconds. " + _RETRY),
    "DeadlineExceeded": Turn(YOU, "Raise spec.activeDeadlineSeconds. " + _RETRY),
    "DependencyFailed": Turn(YOU, "`finetune tree {name}` shows the job that failed. Retry it first. " + _RETRY),
    "Disrupted": Turn(OPERATOR),
    "Superseded": Turn(NOBODY),
    "HardwareError": Turn(ADMINISTRATOR, "The next attempt avoids the node. Have its GPUs checked."),
    "Hung": Turn(OPERATOR),
    "SourceUnreachable": Turn(OPERATOR, "It tries again. Check that the pods reach the hub or bucket."),
    "InternalError": Turn(OPERATOR, "`finetune logs {name}` has the error."),
    "OutOfMemory": Turn(OPERATOR, "Raise spec.resources.memory if it happens again."),
    "Killed": Turn(OPERATOR),
    "JobDeleted": Turn(OPERATOR),
    "Unknown": Turn(OPERATOR, "`finetune describe {name}` shows what is known."),
}
"""Reason -> turn. A test compares the keys with the reasons of the API."""
