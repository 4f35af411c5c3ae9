"""FineTuneJobSpec: what a user asks for. Each section has its own module."""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic.config import JsonDict

from finetune_api import consistency
from finetune_api.base import ApiModel, cel, validated
from finetune_api.data import DatasetSpec, EvaluationSpec, Mixing, TemplateSpec
from finetune_api.model import ModelSpec
from finetune_api.output import OutputSpec, ReportingSpec, SecretsSpec
from finetune_api.resources import PrepareSpec, ResourcesSpec, WorkspaceSpec
from finetune_api.stages import DpoSpec, KtoSpec, PpoSpec, RmSpec
from finetune_api.training import CheckpointsSpec, TrainingSpec
from finetune_api.tuning import TuningSpec

Stage = Literal["pt", "sft", "rm", "dpo", "ppo", "kto"]

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
    """The kind of training. pt: continued pre-training on plain text. sft: supervised fine-tuning on prompts and
    answers. rm: a reward model from pairs of answers. dpo: preference optimization on such pairs. ppo: reinforcement
    learning against a reward model. kto: preference optimization on answers that are wanted or not."""
    model: ModelSpec
    """The model to start from."""
    datasets: list[DatasetSpec] = Field(min_length=1, max_length=64)
    """The data to train on."""
    mixing: Mixing = "concatenate"
    """How several data sets become one. concatenate: all rows of all. interleaveUnder: by their weights, until one runs
    out. interleaveOver: by their weights, until each has run out; shorter ones are repeated."""
    template: TemplateSpec | None = None
    """How a conversation becomes tokens. Unset: by the tokenizer's own template."""
    evaluation: EvaluationSpec | None = None
    """What the model is measured on. Unset: nothing but the training loss."""
    tuning: TuningSpec = TuningSpec()
    """Which weights are trained."""
    training: TrainingSpec
    """Hyper-parameters."""
    rm: RmSpec | None = None
    """Settings of stage rm. Unset: their defaults."""
    dpo: DpoSpec | None = None
    """Settings of stage dpo. Unset: their defaults."""
    kto: KtoSpec | None = None
    """Settings of stage kto. Unset: their defaults."""
    ppo: PpoSpec | None = None
    """Settings of stage ppo, which needs them: it must know what scores answers."""
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    """When the run is saved."""
    reporting: ReportingSpec = ReportingSpec()
    """Where curves go while the job trains, besides the workspace."""
    output: OutputSpec = OutputSpec()
    """What the artifact is, and where it goes besides the workspace."""
    workspace: WorkspaceSpec
    """The volume for data, checkpoints, reports and the artifact."""
    prepare: PrepareSpec = PrepareSpec()
    """What the pod gets that fetches and checks the data before a GPU is held."""
    secrets: SecretsSpec = SecretsSpec()
    """Secrets for hubs and buckets, by name."""
    resources: ResourcesSpec = ResourcesSpec()
    """What each training pod gets, and where it may run."""
    backoff_limit: int = Field(default=3, ge=0, le=100)
    """Attempts that may fail by themselves before the job is Failed. Preemption, drain and the like do not count."""
    start_deadline_seconds: int = Field(default=1800, ge=10, le=604_800)
    """Time that an attempt has to get all of its pods running. After that it is ended, its GPUs are given back and it
    counts as failed."""

    @model_validator(mode="after")
    def _sections_fit_each_other(self) -> Self:
        consistency.check(self)
        return self

    def all_datasets(self) -> list[DatasetSpec]:
        """Those that are trained on, and those that the model is measured on."""
        return [*self.datasets, *((self.evaluation.datasets if self.evaluation else None) or ())]


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


FineTuneJobSpec.model_config["json_schema_extra"] = validated([*immutability_rules(), *consistency.as_cel()])
