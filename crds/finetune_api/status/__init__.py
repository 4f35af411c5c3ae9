"""The status of a FineTuneJob.

Its modules separate the operator's part from the trainer's part. Operator and trainer read both, so they import all
names from this package.
"""

from finetune_api.status.artifact import Artifact, Reference
from finetune_api.status.gpu import USES, Gpu, GpuRun, RunUses, Use
from finetune_api.status.job_status import NOT_OBSERVED, FineTuneJobStatus
from finetune_api.status.operator import (
    ATTEMPTS_SHOWN,
    MAX_ATTEMPTS,
    STORED_JOB_CHARACTERS,
    AppliedPresets,
    Attempt,
    Condition,
    Resolved,
)
from finetune_api.status.restart import Restart
from finetune_api.status.trainer import (
    TRAINER_FIELDS,
    Checkpoint,
    Metrics,
    OutOfMemory,
    Prepared,
    Progress,
    Result,
    SlowestRank,
    finished,
)
from finetune_api.status.vocabulary import ConditionType, Phase, Reason

__all__ = [
    "ATTEMPTS_SHOWN",
    "MAX_ATTEMPTS",
    "NOT_OBSERVED",
    "STORED_JOB_CHARACTERS",
    "TRAINER_FIELDS",
    "USES",
    "AppliedPresets",
    "Artifact",
    "Attempt",
    "Checkpoint",
    "Condition",
    "ConditionType",
    "FineTuneJobStatus",
    "Gpu",
    "GpuRun",
    "Metrics",
    "OutOfMemory",
    "Phase",
    "Prepared",
    "Progress",
    "Reason",
    "Reference",
    "Resolved",
    "Restart",
    "Result",
    "RunUses",
    "SlowestRank",
    "Use",
    "finished",
]
