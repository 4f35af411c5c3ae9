"""FineTuneJobSpec: what a user asks for. Each section has its own module."""

from typing import Literal

from pydantic import Field
from pydantic.config import JsonDict

from finetune_api.base import ApiModel, cel, validated
from finetune_api.model import DatasetSpec, ModelSpec
from finetune_api.resources import ResourcesSpec, WorkspaceSpec
from finetune_api.training import CheckpointsSpec, TrainingSpec
from finetune_api.tuning import TuningSpec

Stage = Literal["sft"]

MUTABLE = ("backoffLimit", "startDeadlineSeconds")
"""Fields that may be changed while the job lives, as on a batch/v1 Job; checkpoints.keep besides."""


def immutable(field: str) -> JsonDict:
    """The rule for one field, written for the spec's level: a rule at the field itself would not see it added or
    removed."""
    return cel(
        f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
        f"spec.{field} cannot be changed: delete the job, or create one with another name",
    )


class FineTuneJobSpec(ApiModel):
    """What to train, on what, how and with what."""

    stage: Stage
    """The kind of training. sft: supervised fine-tuning on prompts and answers."""
    model: ModelSpec
    """The model to start from."""
    datasets: list[DatasetSpec] = Field(min_length=1, max_length=64)
    """The data to train on."""
    tuning: TuningSpec = TuningSpec()
    """Which weights are trained."""
    training: TrainingSpec
    """Hyper-parameters."""
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    """When the run is saved."""
    workspace: WorkspaceSpec
    """The volume for checkpoints, reports and the artifact."""
    resources: ResourcesSpec = ResourcesSpec()
    """What each training pod gets, and where it may run."""
    backoff_limit: int = Field(default=3, ge=0, le=100)
    """Attempts that may fail by themselves before the job is Failed. Preemption, drain and the like do not count."""
    start_deadline_seconds: int = Field(default=1800, ge=10, le=604_800)
    """Time that an attempt has to get all of its pods running. After that it is ended, its GPUs are given back and it
    counts as failed."""


def immutability_rules() -> list[JsonDict]:
    """One rule per immutable field, generated from the model so that a new field can't be forgotten."""
    fields = [info.alias or name for name, info in FineTuneJobSpec.model_fields.items()]
    rules = [immutable(field) for field in fields if field not in (*MUTABLE, "checkpoints")]
    for name, info in CheckpointsSpec.model_fields.items():
        field = info.alias or name
        if field != "keep":
            # checkpoints has a default, so the section is always there.
            rules.append(immutable(f"checkpoints.{field}"))
    return rules


FineTuneJobSpec.model_config["json_schema_extra"] = validated(immutability_rules())
