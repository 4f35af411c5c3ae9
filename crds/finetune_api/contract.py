"""The contract between operator and trainer: its files, its version, and how a job is resolved.

The trainer reads ``/etc/finetune/job.json`` (`ResolvedJob`) and ``/etc/finetune/attempt.json`` (`AttemptFacts`), both
mounted from pod annotations by the downward API. It writes status fields, a termination message and an exit code
(`finetune_api.status`, `finetune_api.exit_codes`).
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.chaining import apply_references
from finetune_api.data import DatasetSpec, EvaluationSpec, Mixing, TemplateSpec
from finetune_api.defaults import apply_defaults
from finetune_api.job import FineTuneJob
from finetune_api.kubernetes import DnsLabel, DnsName, quantity
from finetune_api.model import ModelSettings, check_allowed
from finetune_api.output import OutputSpec, ReportingSpec
from finetune_api.source import ModelSource
from finetune_api.spec import FineTuneJobSpec
from finetune_api.stages import DpoSpec, KtoSpec, PpoSpec, RmSpec, Stage
from finetune_api.status.artifact import Reference
from finetune_api.training import CheckpointsSpec, TrainingSpec
from finetune_api.tuning import AdapterSpec, TuningSpec

FIRST_CONTRACT = 3
"""The contract of the first release."""
CONTRACT = 4
RESTARTS_SINCE = 4
"""The first contract whose attempt.json has `AttemptFacts.restarts`. An older image refuses keys that it does not
know, so a job that is pinned to an earlier contract gets no fact that came later."""
CONTRACTS_ACCEPTED = tuple(range(max(FIRST_CONTRACT, CONTRACT - 1), CONTRACT + 1))
"""The trainer accepts its own contract and the contract before it, so that jobs survive an upgrade of the operator."""

JOB_FILE = "/etc/finetune/job.json"
ATTEMPT_FILE = "/etc/finetune/attempt.json"
WORKSPACE = "/workspace"
VOLUMES = "/volumes"
CONFIG_MAPS = "/configmaps"
TERMINATION_MESSAGE = "/dev/termination-log"
TERMINATION_MESSAGE_BYTES = 4000
"""The kubelet cuts the message at 4096 bytes, which makes its JSON invalid."""
RESOLVED_JOB_BYTES = 65_536
"""Most bytes of a resolved job, which travels in an annotation of the pod."""

NOT_IN_DIGEST: dict[str, Any] = {
    "rollout_micro_batch_size": True,
    "reference": {"from_job"},
    "reward_model": {"from_job": True, "http": {"secret", "timeout_seconds"}},
}
"""Settings of a stage that do not decide the result: batch sizes in memory, names of jobs, access to services."""


class Runtime(ApiModel):
    """Facts about the pods, and operator settings, that the trainer needs."""

    nodes: int = Field(default=1, ge=1, le=9999)
    """Pods that train together."""
    gpus_per_node: int = Field(default=1, ge=0, le=16)
    """GPUs of each pod. The pod has a rank per GPU, and at least a single rank."""
    allow_cpu: bool = False
    """Train on the CPU although the job asks for GPUs (clusters with simulated GPUs)."""
    progress_interval_seconds: int = Field(default=15, ge=1, le=3600)
    """Shortest time between two writes of progress, in seconds."""
    prepare_processes: int | None = Field(default=None, ge=1, le=256)
    """Processes that tokenize. None: the number of CPUs."""
    gpu_memory_bytes: int | None = Field(default=None, ge=1)
    """Memory of a GPU in bytes. None: unknown."""
    allow_remote_code: bool = False
    """Whether the installation lets jobs run code from a model's repository."""


class ResolvedModel(ModelSettings):
    """spec.model, with fromJob replaced by the model of that job's artifact: the artifact itself, or the base of its
    adapter."""

    source: ModelSource
    """URI from the spec, or pvc://claim/jobs/<name>/artifact."""


class ResolvedAdapter(AdapterSpec):
    """spec.tuning.adapter, with a source."""

    source: ModelSource
    """URI from the spec, or pvc://claim/jobs/<name>/artifact."""


class ResolvedTuning(TuningSpec):
    """spec.tuning with every default, and with the adapter of model.fromJob."""

    adapter: ResolvedAdapter | None = None
    """Earlier LoRA adapter that training starts from."""


class ResolvedJob(ApiModel):
    """The resolved job: the spec with every default, reference and operator setting, as the trainer reads it."""

    contract: int
    """Version of the contract that this document follows."""
    name: str
    """metadata.name, which names the job's directory in the workspace."""
    digest: str
    """Job digest, see `job_digest`."""
    stage: Stage
    """spec.stage."""
    model: ResolvedModel
    """spec.model without fromJob."""
    datasets: list[DatasetSpec] = Field(min_length=1)
    """spec.datasets."""
    mixing: Mixing
    """spec.mixing."""
    template: TemplateSpec
    """spec.template with every default."""
    evaluation: EvaluationSpec | None = None
    """spec.evaluation."""
    tuning: ResolvedTuning
    """spec.tuning with every default."""
    training: TrainingSpec
    """spec.training with every default."""
    rm: RmSpec | None = None
    """spec.rm with every default in stage rm, otherwise None."""
    dpo: DpoSpec | None = None
    """spec.dpo with every default in stage dpo, otherwise None."""
    kto: KtoSpec | None = None
    """spec.kto with every default in stage kto, otherwise None."""
    ppo: PpoSpec | None = None
    """spec.ppo with every default in stage ppo, otherwise None."""
    references: list[Reference] = Field(max_length=3)
    """Artifacts of the jobs that the spec names in fromJob fields."""
    checkpoints: CheckpointsSpec
    """spec.checkpoints."""
    reporting: ReportingSpec
    """spec.reporting."""
    output: OutputSpec
    """spec.output."""
    workspace_claim: DnsLabel
    """Claim that is mounted at /workspace. Artifact URIs name it."""
    runtime: Runtime
    """Pods and operator settings."""


class AttemptFacts(ApiModel):
    """Facts that differ between the attempts of a job."""

    namespace: DnsLabel
    """Namespace of the FineTuneJob."""
    name: DnsName
    """Name of the FineTuneJob."""
    uid: str
    """uid of the FineTuneJob. The API server refuses a status write for another uid."""
    kind: Literal["prepare", "train"] = "train"
    """Whether the attempt prepares or trains."""
    attempt: int = Field(ge=1, le=999)
    """Number of the attempt. Prepare and training attempts are counted separately."""
    job_name: DnsName
    """Name of the child job, and of the headless Service that resolves its pods."""
    micro_batch_size: int | None = None
    """Micro-batch of this attempt in rows, if it differs from that of the job."""
    micro_batch_tokens: int | None = None
    """Micro-batch of this attempt in tokens, if it differs from that of the job."""
    recompute: Literal["all"] | None = None
    """all: recompute all layers, since the GPU ran out of memory at the smallest micro-batch with fewer. None: as the
    job says."""
    grace_period_seconds: int = 120
    """terminationGracePeriodSeconds of the pod, in seconds."""
    restarts: int | None = Field(default=None, ge=0)
    """How many failures may be followed by a restart of the ranks in the same pods: what is left of backoffLimit. None
    (contract 3, preparing, a laptop): the ranks are never restarted."""


def canonical(value: Any) -> str:
    """JSON in canonical form: equal values give equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def source_of(job: ResolvedJob, use: Literal["reference", "rewardModel"]) -> str | None:
    """URI of the reference model or the reward model. None if the job names no model, or a service."""
    for reference in job.references:
        if reference.use == use:
            return reference.artifact.uri
    if use == "rewardModel":
        return job.ppo.reward_model.source if job.ppo else None
    section = job.dpo or job.kto or job.ppo
    return section.reference.source if section and section.reference else None


def base_of(job: ResolvedJob, use: Literal["reference", "rewardModel"]) -> str | None:
    """URI of the base model of the adapter that is the reference or reward model, if the job names it."""
    for reference in job.references:
        if reference.use == use:
            return reference.artifact.base
    section = job.dpo or job.kto or job.ppo
    named = (job.ppo.reward_model if job.ppo else None) if use == "rewardModel" else section and section.reference
    return named.base if named else None


def job_digest(job: ResolvedJob) -> str:
    """The job digest: sha256 of all settings that decide the result.

    It excludes resources, micro-batches, recomputation, target of the upload, image, checkpoints, metadata and
    operational fields, which may differ between attempts that resume each other. The digest of another job's artifact
    replaces its URI.
    """
    digests = {reference.artifact.uri: reference.artifact.digest for reference in job.references}

    def pinned(source: str) -> str:
        return digests.get(source, source)

    model = job.model.model_copy(update={"source": pinned(job.model.source)})
    tuning, adapter = job.tuning, job.tuning.adapter
    if adapter is not None:
        pinned_adapter = adapter.model_copy(update={"source": pinned(adapter.source)})
        tuning = tuning.model_copy(update={"adapter": pinned_adapter})
    # What runs again in the backward pass does not change the result. gradientCheckpointing was here with its default
    # before recompute came, and the digest of an unchanged job stays.
    training = job.training.model_copy(
        update={
            "micro_batch_size": None,
            "micro_batch_tokens": None,
            "recompute": None,
            "gradient_checkpointing": job.training.gradient_checkpointing is not False,
        }
    )
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
        section.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=NOT_IN_DIGEST) if section else None,
        [[reference.use, reference.artifact.digest] for reference in job.references],
        job.output.model_copy(update={"uri": None}).to_dict(),
    ]
    return "sha256:" + hashlib.sha256(canonical(decisive).encode()).hexdigest()


def claim_name(job_name: str, spec: FineTuneJobSpec) -> str:
    """Name of the workspace's claim: the user's claim, or the claim that the operator creates."""
    return spec.workspace.claim_name or f"{job_name}-workspace"


def keeps_on_cpu(job: ResolvedJob) -> bool:
    """Whether a single pod without GPUs makes the artifact of a checkpoint. With FSDP it takes the job's own pods: the
    weights are in shards, and may fit nowhere as a whole."""
    return job.training.parallelism != "fsdp"


def runtime_of(
    spec: FineTuneJobSpec,
    *,
    allow_cpu: bool,
    allow_remote_code: bool,
    gpu_memory_bytes: int | None,
    progress_interval_seconds: int,
) -> Runtime:
    """The facts about the pods that follow from spec.resources and spec.prepare, with settings of the operator."""
    memory = spec.resources.gpu_memory
    return Runtime(
        nodes=spec.resources.nodes,
        gpus_per_node=spec.resources.gpus_per_node,
        allow_cpu=allow_cpu,
        allow_remote_code=allow_remote_code,
        gpu_memory_bytes=int(quantity(memory)) if memory else gpu_memory_bytes,
        prepare_processes=max(1, math.ceil(quantity(spec.prepare.cpu))),
        progress_interval_seconds=progress_interval_seconds,
    )


def resolve(
    job: FineTuneJob,
    *,
    references: Sequence[Reference] = (),
    allow_cpu: bool = False,
    allow_remote_code: bool = False,
    gpu_memory_bytes: int | None = None,
    progress_interval_seconds: int = 15,
) -> ResolvedJob:
    """The resolved job. The operator calls this at acceptance, and the trainer calls it when it runs on a laptop.

    ``references`` are the artifacts of the jobs that `from_jobs` returns. ``gpu_memory_bytes`` is the memory of a GPU
    by the labels of the nodes; spec.resources.gpuMemory takes precedence. Raises ValueError with a message for the user
    if batch sizes and GPUs do not fit together, or an artifact does not fit the job.
    """
    check_allowed(job.spec.model, allow_remote_code=allow_remote_code)
    spec, used = apply_references(job.spec, references)
    defaulted = apply_defaults(spec)
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
        tuning=ResolvedTuning.model_validate(defaulted.tuning.to_dict()),
        training=defaulted.training,
        rm=defaulted.rm,
        dpo=defaulted.dpo,
        kto=defaulted.kto,
        ppo=defaulted.ppo,
        references=used,
        checkpoints=spec.checkpoints,
        reporting=spec.reporting,
        output=spec.output,
        workspace_claim=claim_name(job.metadata.name, spec),
        runtime=runtime_of(
            spec,
            allow_cpu=allow_cpu,
            allow_remote_code=allow_remote_code,
            gpu_memory_bytes=gpu_memory_bytes,
            progress_interval_seconds=progress_interval_seconds,
        ),
    )
    return resolved.model_copy(update={"digest": job_digest(resolved)})
