"""The sections of a FineTuneJobSpec. Each section has its own module; `finetune_api.spec` adds the rules."""

from typing import Literal

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.data import DatasetSpec, EvaluationSpec, Mixing, TemplateSpec
from finetune_api.kubernetes import QueueName
from finetune_api.model import ModelSpec
from finetune_api.output import NotifySpec, OutputSpec, ReportingSpec, SecretsSpec
from finetune_api.resources import PrepareSpec, ResourcesSpec, WorkspaceSpec
from finetune_api.stages import DpoSpec, KtoSpec, PpoSpec, RmSpec, Stage
from finetune_api.training import CheckpointsSpec, TrainingSpec
from finetune_api.tuning import TuningSpec


class SpecSections(ApiModel):
    """The sections of a spec, without the rules between them."""

    stage: Stage
    """Kind of training: pt (continued pre-training), sft (supervised), rm (reward model), dpo and kto (preferences),
    ppo (reinforcement learning)."""
    model: ModelSpec
    """Model that training starts from."""
    datasets: list[DatasetSpec] = Field(min_length=1, max_length=64)
    """Data that the model trains on. mixing says how several data sets combine."""
    mixing: Mixing = "concatenate"
    """concatenate: all rows. interleaveUnder, interleaveOver: rows drawn by weight until the first data set ends, or
    until every data set has ended."""
    template: TemplateSpec | None = None
    """How a conversation becomes tokens. Set it to change the chat template or the trained tokens. Unset: the
    tokenizer's own template."""
    evaluation: EvaluationSpec | None = None
    """Held-out data, and how often the model is evaluated on it. Unset: the job reports the training loss only."""
    tuning: TuningSpec = TuningSpec()
    """Which weights are trained, and how. The default is a LoRA adapter."""
    training: TrainingSpec
    """Hyperparameters: length, learning rate, batch sizes, precision and others."""
    rm: RmSpec | None = None
    """Settings of stage rm. Unset: the defaults."""
    dpo: DpoSpec | None = None
    """Settings of stage dpo. Unset: the defaults."""
    kto: KtoSpec | None = None
    """Settings of stage kto. Unset: the defaults."""
    ppo: PpoSpec | None = None
    """Settings of stage ppo. The stage requires this section, because ppo.rewardModel has no default."""
    checkpoints: CheckpointsSpec = CheckpointsSpec()
    """How often a checkpoint is saved, and how many are kept."""
    reporting: ReportingSpec = ReportingSpec()
    """Trackers that receive the training curves, in addition to the workspace."""
    output: OutputSpec = OutputSpec()
    """Form of the artifact, and where a copy of it is uploaded."""
    workspace: WorkspaceSpec
    """Volume for fetched data, prepared data, checkpoints, reports and the artifact."""
    prepare: PrepareSpec = PrepareSpec()
    """Resources of the pod that fetches and checks the data before the job holds a GPU."""
    secrets: SecretsSpec = SecretsSpec()
    """Names of the Secrets for hubs and buckets."""
    resources: ResourcesSpec = ResourcesSpec()
    """Resources of each training pod, and the nodes it may run on."""
    queue: QueueName | None = None
    """Kueue LocalQueue in the job's namespace that admits the training pods. They start once it has quota. Unset: they
    start at once."""
    queue_priority_class: QueueName | None = None
    """WorkloadPriorityClass of Kueue for training and preparing. Set it to change who is admitted and preempted
    first."""
    backoff_limit: int = Field(default=3, ge=0, le=100)
    """Failed attempts that are retried before the job fails. Disruptions (preemption, drain) do not count. Raise it if
    failures are transient."""
    start_deadline_seconds: int = Field(default=1800, ge=10, le=604_800)
    """Seconds from its admission in which all pods of an attempt must be running; after that it ends and counts as
    failed. Raise it if GPUs are scarce."""
    active_deadline_seconds: int | None = Field(default=None, ge=1, le=31_536_000)
    """Seconds that all attempts together may train; waiting and preparing do not count. After that the job saves and
    fails. Unset: no limit."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=31_536_000)
    """Seconds after the end of the job until its pods (with their logs), Jobs and Services are deleted. Unset: the
    installation's default."""
    retry: int = Field(default=0, ge=0, le=999)
    """Raise it above status.retry to re-open a job that has Failed: it continues from its newest checkpoint with a new
    backoffLimit."""

    notify: NotifySpec | None = None
    """Webhook that gets the end of the job. Unset: that of the presets, or none."""

    suspend: bool | None = None
    """true: the pods save, end and free their GPUs. false or unset: the job runs, from its newest checkpoint.
    resources, prepare, secrets, queue may change if true."""

    stop: Literal["keep"] | None = None
    """keep: training ends now, and the artifact is made of what was trained. It cannot be taken back. Unset: all steps
    are trained."""

    def all_datasets(self) -> list[DatasetSpec]:
        """Those that are trained on, and those that the model is measured on."""
        return [*self.datasets, *((self.evaluation.datasets if self.evaluation else None) or ())]
