"""The contract between operator and trainer: files in, files out, and their versions.

In: ``/etc/finetune/job.json`` (`ResolvedJob`) and ``/etc/finetune/attempt.json`` (`AttemptFacts`), both from pod
annotations through the downward API. Out: status fields, termination message and exit code (`finetune_api.status`,
`finetune_api.exit_codes`). The trainer accepts its own contract version and the one before.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from finetune_api.base import ApiModel, DnsLabel, DnsName, quantity
from finetune_api.chaining import followed
from finetune_api.data import DatasetSpec, EvaluationSpec, Mixing, TemplateSpec
from finetune_api.defaults import fill_in
from finetune_api.job import FineTuneJob
from finetune_api.model import ModelSettings, check_allowed
from finetune_api.output import OutputSpec, ReportingSpec
from finetune_api.source import ModelSource
from finetune_api.spec import FineTuneJobSpec, Stage
from finetune_api.stages import DpoSpec, KtoSpec, PpoSpec, RmSpec
from finetune_api.status import Reference
from finetune_api.training import CheckpointsSpec, TrainingSpec
from finetune_api.tuning import AdapterSpec, TuningSpec

CONTRACT = 3
CONTRACTS_ACCEPTED = (2, 3)

JOB_FILE = "/etc/finetune/job.json"
ATTEMPT_FILE = "/etc/finetune/attempt.json"
WORKSPACE = "/workspace"
VOLUMES = "/volumes"
CONFIG_MAPS = "/configmaps"
TERMINATION_MESSAGE = "/dev/termination-log"
TERMINATION_MESSAGE_BYTES = 4000
"""The kubelet cuts at 4096 bytes, which would leave invalid JSON."""
RESOLVED_JOB_BYTES = 65_536

NOT_DECISIVE: dict[str, Any] = {
    "rollout_micro_batch_size": True,
    "reference": {"from_job"},
    "reward_model": {"from_job": True, "http": {"secret", "timeout_seconds"}},
}
"""What in a stage's section says who, or how much at once, and not what: the job's digest leaves it out."""


class Runtime(ApiModel):
    """What the trainer needs to know of its pods and of the operator's settings."""

    nodes: int = Field(default=1, ge=1, le=9999)
    """Pods that train together."""
    gpus_per_node: int = Field(default=1, ge=0, le=16)
    """Ranks per pod, at least one."""
    allow_cpu: bool = False
    """Train on the CPU although GPUs were asked for (clusters with make-believe GPUs)."""
    progress_interval_seconds: int = Field(default=15, ge=1, le=3600)
    """Shortest time between two writes of progress."""
    prepare_processes: int | None = Field(default=None, ge=1, le=256)
    """Processes that tokenize. None: as many as there are CPUs."""
    gpu_memory_bytes: int | None = Field(default=None, ge=1)
    """Memory of one GPU, where it is known."""
    allow_remote_code: bool = False
    """Whether the installation lets jobs run a model's own code."""


class ResolvedModel(ModelSettings):
    """spec.model, and of another job's artifact the model that it is or goes on."""

    source: ModelSource
    """As in the spec, or pvc://claim/jobs/<name>/artifact."""


class ResolvedAdapter(AdapterSpec):
    """spec.tuning.adapter, its place known."""

    source: ModelSource
    """As in the spec, or pvc://claim/jobs/<name>/artifact."""


class ResolvedTuning(TuningSpec):
    """spec.tuning, and the adapter that model.fromJob brought."""

    adapter: ResolvedAdapter | None = None
    """An earlier LoRA adapter to start from."""


class ResolvedJob(ApiModel):
    """The spec with every default, reference and operator setting filled in, as the trainer reads it."""

    contract: int
    """Version of this format."""
    name: str
    """metadata.name: the job's folder in the workspace."""
    digest: str
    """sha256 of what decides the result; see `job_digest`."""
    stage: Stage
    """As in the spec."""
    model: ResolvedModel
    """As in the spec, fromJob followed."""
    datasets: list[DatasetSpec] = Field(min_length=1)
    """As in the spec."""
    mixing: Mixing
    """As in the spec."""
    template: TemplateSpec
    """As in the spec."""
    evaluation: EvaluationSpec | None = None
    """As in the spec."""
    tuning: ResolvedTuning
    """As in the spec, defaults filled in."""
    training: TrainingSpec
    """As in the spec, defaults filled in."""
    rm: RmSpec | None = None
    """Of stage rm always there; so are the next three of theirs."""
    dpo: DpoSpec | None = None
    """As in the spec."""
    kto: KtoSpec | None = None
    """As in the spec."""
    ppo: PpoSpec | None = None
    """As in the spec, defaults filled in."""
    references: list[Reference] = Field(default=[], max_length=3)
    """Other jobs' artifacts: where fromJob is named, its entry says what is meant."""
    checkpoints: CheckpointsSpec
    """As in the spec."""
    reporting: ReportingSpec = ReportingSpec()
    """As in the spec."""
    output: OutputSpec
    """As in the spec."""
    workspace_claim: DnsLabel
    """Claim behind /workspace: artifacts are named by it."""
    runtime: Runtime
    """Pods and operator settings."""


class AttemptFacts(ApiModel):
    """What differs between the attempts of one job."""

    namespace: DnsLabel
    """Namespace of the FineTuneJob."""
    name: DnsName
    """Name of the FineTuneJob."""
    uid: str
    """Its uid: a status write for another uid is refused."""
    kind: Literal["prepare", "train"] = "train"
    """What the attempt does."""
    attempt: int = Field(ge=1, le=999)
    """Number of the attempt; preparing and training count apart."""
    job_name: DnsName
    """Name of its Job, and of the headless Service that resolves its pods."""
    micro_batch_size: int | None = None
    """Micro-batch of this attempt where it differs from the job's."""
    grace_period_seconds: int = 120
    """terminationGracePeriodSeconds of the pod."""


def canonical(value: Any) -> str:
    """JSON with one spelling only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def source_of(job: ResolvedJob, use: Literal["reference", "rewardModel"]) -> str | None:
    """Where the model is that a stage compares with or is scored by. None: the job names none, or a service."""
    for reference in job.references:
        if reference.use == use:
            return reference.artifact.uri
    if use == "rewardModel":
        return job.ppo.reward_model.source if job.ppo else None
    section = job.dpo or job.kto or job.ppo
    return section.reference.source if section and section.reference else None


def job_digest(job: ResolvedJob) -> str:
    """sha256 of what decides the result. Never of resources, micro-batches, where the artifact is copied to, image,
    checkpoints, metadata or operational fields: those may differ between attempts that continue each other. Another
    job's artifact is named by its own digest, wherever it lies."""
    digests = {one.artifact.uri: one.artifact.digest for one in job.references}

    def pinned(source: str) -> str:
        return digests.get(source, source)

    model = job.model.model_copy(update={"source": pinned(job.model.source)})
    tuning, adapter = job.tuning, job.tuning.adapter
    if adapter is not None:
        pinned_adapter = adapter.model_copy(update={"source": pinned(adapter.source)})
        tuning = tuning.model_copy(update={"adapter": pinned_adapter})
    training = job.training.model_copy(update={"micro_batch_size": None})
    section = job.rm or job.dpo or job.kto or job.ppo
    decisive = [
        job.stage,
        model.to_dict(),
        job.template.to_dict(),
        [dataset.to_dict() for dataset in job.datasets],
        job.mixing,
        job.evaluation.to_dict() if job.evaluation else None,
        tuning.to_dict(),
        training.to_dict(),
        section.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=NOT_DECISIVE) if section else None,
        [[one.use, one.artifact.digest] for one in job.references],
        job.output.model_copy(update={"uri": None}).to_dict(),
    ]
    return "sha256:" + hashlib.sha256(canonical(decisive).encode()).hexdigest()


def claim_name(job_name: str, spec: FineTuneJobSpec) -> str:
    """The workspace's claim: the user's, or the one that the operator makes."""
    return spec.workspace.claim_name or f"{job_name}-workspace"


def resolve(
    job: FineTuneJob,
    *,
    references: Sequence[Reference] = (),
    allow_cpu: bool = False,
    allow_remote_code: bool = False,
    gpu_memory_bytes: int | None = None,
    progress_interval_seconds: int = 15,
) -> ResolvedJob:
    """Fill in everything. The operator does it at acceptance, a laptop run at its start, by the same function.

    ``references`` are the artifacts of the jobs that `from_jobs` names. ``gpu_memory_bytes`` is what is known of the
    nodes; spec.resources.gpuMemory goes before it. Raises ValueError with a message for the user when the numbers don't
    fit together, or a job that is named made nothing that this one can use.
    """
    check_allowed(job.spec.model, allow_remote_code=allow_remote_code)
    spec, used = followed(job.spec, references)
    filled = fill_in(spec)
    resolved = ResolvedJob(
        contract=CONTRACT,
        name=job.metadata.name,
        digest="",
        stage=spec.stage,
        model=ResolvedModel.model_validate(spec.model.to_dict()),
        datasets=spec.datasets,
        mixing=spec.mixing,
        template=spec.template or TemplateSpec(),
        evaluation=spec.evaluation,
        tuning=ResolvedTuning.model_validate(filled.tuning.to_dict()),
        training=filled.training,
        rm=filled.rm,
        dpo=filled.dpo,
        kto=filled.kto,
        ppo=filled.ppo,
        references=used,
        checkpoints=spec.checkpoints,
        reporting=spec.reporting,
        output=spec.output,
        workspace_claim=claim_name(job.metadata.name, spec),
        runtime=Runtime(
            nodes=spec.resources.nodes,
            gpus_per_node=spec.resources.gpus_per_node,
            allow_cpu=allow_cpu,
            allow_remote_code=allow_remote_code,
            gpu_memory_bytes=int(quantity(spec.resources.gpu_memory))
            if spec.resources.gpu_memory
            else gpu_memory_bytes,
            prepare_processes=max(1, math.ceil(quantity(spec.prepare.cpu))),
            progress_interval_seconds=progress_interval_seconds,
        ),
    )
    return resolved.model_copy(update={"digest": job_digest(resolved)})
