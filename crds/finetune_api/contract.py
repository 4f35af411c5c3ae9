"""The contract between operator and trainer: files in, files out, and their versions.

In: ``/etc/finetune/job.json`` (`ResolvedJob`) and ``/etc/finetune/attempt.json`` (`AttemptFacts`), both from pod
annotations through the downward API. Out: status fields, termination message and exit code (`finetune_api.status`,
`finetune_api.exit_codes`). The trainer accepts its own contract version and the one before.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import Field

from finetune_api.base import ApiModel, DnsLabel, DnsName
from finetune_api.job import FineTuneJob
from finetune_api.model import DatasetSpec, ModelSpec
from finetune_api.spec import FineTuneJobSpec, Stage
from finetune_api.training import CheckpointsSpec, TrainingSpec
from finetune_api.tuning import LoraSpec, TuningSpec

CONTRACT = 1
CONTRACTS_ACCEPTED = (1,)

JOB_FILE = "/etc/finetune/job.json"
ATTEMPT_FILE = "/etc/finetune/attempt.json"
WORKSPACE = "/workspace"
VOLUMES = "/volumes"
TERMINATION_MESSAGE = "/dev/termination-log"
TERMINATION_MESSAGE_BYTES = 4000
"""The kubelet cuts at 4096 bytes, which would leave invalid JSON."""
RESOLVED_JOB_BYTES = 65_536


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
    model: ModelSpec
    """As in the spec."""
    datasets: list[DatasetSpec] = Field(min_length=1)
    """As in the spec."""
    tuning: TuningSpec
    """As in the spec, defaults filled in."""
    training: TrainingSpec
    """As in the spec, defaults filled in."""
    checkpoints: CheckpointsSpec
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
    attempt: int = Field(ge=1, le=999)
    """Number of the attempt."""
    job_name: DnsName
    """Name of its Job, and of the headless Service that resolves its pods."""
    micro_batch_size: int | None = None
    """Micro-batch of this attempt where it differs from the job's."""
    grace_period_seconds: int = 120
    """terminationGracePeriodSeconds of the pod."""


LEARNING_RATE: dict[str, float] = {"lora": 1e-4, "full": 1e-5}
MICRO_BATCHES = (4, 2, 1)


def fill_in(spec: FineTuneJobSpec) -> tuple[TuningSpec, TrainingSpec]:
    """The defaults that hang on other fields, which a schema can't express. This is their only place.

    Raises ValueError when globalBatchSize can't be shared out evenly over the ranks.
    """
    tuning, training = spec.tuning, spec.training
    if tuning.method == "lora":
        lora = tuning.lora or LoraSpec()
        alpha = lora.alpha if lora.alpha is not None else 2 * lora.rank
        tuning = tuning.model_copy(update={"lora": lora.model_copy(update={"alpha": alpha})})
    if training.learning_rate is None:
        training = training.model_copy(update={"learning_rate": LEARNING_RATE[tuning.method]})
    ranks = spec.resources.nodes * max(1, spec.resources.gpus_per_node)
    share, rest = divmod(training.global_batch_size, ranks)
    if rest:
        raise ValueError(
            f"training.globalBatchSize is {training.global_batch_size}, which {ranks} GPUs can't share evenly: use a"
            f" multiple of {ranks}"
        )
    micro = training.micro_batch_size or next(size for size in MICRO_BATCHES if share % size == 0)
    if share % micro:
        raise ValueError(
            f"training.microBatchSize is {micro}, but each of {ranks} GPUs gets {share} rows of a global batch of"
            f" {training.global_batch_size}: use a divisor of {share}"
        )
    return tuning, training.model_copy(update={"micro_batch_size": micro})


def canonical(value: Any) -> str:
    """JSON with one spelling only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def job_digest(stage: str, *sections: ApiModel | list[DatasetSpec]) -> str:
    """sha256 of what decides the result. Never of resources, micro-batch, image, checkpoints, metadata or operational
    fields: those may differ between attempts that continue each other."""
    plain = [[item.to_dict() for item in s] if isinstance(s, list) else s.to_dict() for s in sections]
    return "sha256:" + hashlib.sha256(canonical([stage, *plain]).encode()).hexdigest()


def resolve(
    job: FineTuneJob, *, allow_cpu: bool = False, progress_interval_seconds: int = 15, contract: Literal[1] = 1
) -> ResolvedJob:
    """Fill in everything. The operator does it at acceptance, a laptop run at its start, by the same function.

    Raises ValueError with a message for the user when the numbers don't fit together.
    """
    spec = job.spec
    tuning, training = fill_in(spec)
    return ResolvedJob(
        contract=contract,
        name=job.metadata.name,
        digest=job_digest(
            spec.stage, spec.model, spec.datasets, tuning, training.model_copy(update={"micro_batch_size": None})
        ),
        stage=spec.stage,
        model=spec.model,
        datasets=spec.datasets,
        tuning=tuning,
        training=training,
        checkpoints=spec.checkpoints,
        workspace_claim=spec.workspace.claim_name,
        runtime=Runtime(
            nodes=spec.resources.nodes,
            gpus_per_node=spec.resources.gpus_per_node,
            allow_cpu=allow_cpu,
            progress_interval_seconds=progress_interval_seconds,
        ),
    )
