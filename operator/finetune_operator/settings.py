"""Settings of the installation, read once from the environment. The chart's values set them."""

import json
from typing import Annotated, Literal

from finetune_api.presets import Presets
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _names(value: object) -> object:
    return [name for name in value.split(",") if name] if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _parsed(value: object) -> object:
    return json.loads(value or "{}") if isinstance(value, str) else value


class Settings(BaseModel):
    """Every field is read from FINETUNE_<NAME>."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    trainer_image: str
    """Image of training pods, unless the job names another."""
    trainer_image_pull_policy: str = "IfNotPresent"
    trainer_pull_secrets: Annotated[list[str], BeforeValidator(_names)] = []
    """Names of pull secrets for every training pod. They must exist in the job's namespace."""
    trainer_role: str = "finetune-trainer"
    """The chart's role with one rule: patch finetunejobs/status. A ClusterRole; with `watch_namespaces`, a Role in each
    of them. It names the installation that serves this scope (see `territory`)."""
    watch_namespaces: Annotated[list[str], BeforeValidator(_names)] = []
    """The namespaces that are watched, listed and served. Empty: all of the cluster."""
    installation: str = ""
    """<namespace>/<name> of the installation. Empty: it serves every namespace that it watches (laptop)."""
    allow_cpu: bool = False
    """Let jobs that request GPUs train on the CPU: for test clusters with fake GPUs."""
    allow_remote_code: bool = False
    """Let jobs run code from a model's repository (model.trustRemoteCode)."""
    read_node_labels: bool = False
    """Read the memory of a GPU from the nodes' labels, unless the job states it (resources.gpuMemory)."""
    hub_endpoint: str = ""
    """HF_ENDPOINT of the pods: a mirror of the Hugging Face hub. Empty: the hub itself."""
    s3_endpoint: str = ""
    """AWS_ENDPOINT_URL of the pods, unless the job's Secret names another. Empty: AWS."""
    http_proxy: str = ""
    """HTTP_PROXY of the pods."""
    https_proxy: str = ""
    """HTTPS_PROXY of the pods."""
    no_proxy: Annotated[list[str], BeforeValidator(_names)] = []
    """Names and addresses that pods reach without a proxy, in addition to the cluster's own."""
    ca_config_map: str = ""
    """ConfigMap with the certificates that the pods trust, in the job's namespace. Empty: those of the image."""
    ca_key: str = "ca.crt"
    """Its key."""
    temporary_storage: str = "32Gi"
    """Limit of /tmp of the pods, on their node's disk. The kubelet evicts a pod that uses more."""
    progress_interval_seconds: int = Field(default=15, ge=1)
    """Shortest time between two progress writes of a job."""
    ttl_seconds_after_finished: int = Field(default=-1, ge=-1)
    """spec.ttlSecondsAfterFinished of jobs that do not set it. -1: their children stay."""
    presets: Annotated[Presets, BeforeValidator(_parsed)] = Presets()
    """Presets of namespaces that have none, as JSON."""
    resync_seconds: float = Field(default=300, gt=0)
    """Interval at which everything is listed and planned again. It repairs lost watch events."""
    workers: int = Field(default=16, ge=1)
    """Number of jobs that are reconciled at the same time."""
    retry_seconds: float = Field(default=10, gt=0)
    """Backoff before the first retry. It doubles for each attempt in a row without a newer checkpoint."""
    retry_seconds_max: float = 600
    """Longest backoff before a retry."""
    lost_node_timeout: float = Field(default=300, ge=1)
    """Seconds for which a pod may stay Terminating on a node that does not answer, before nobody waits for it."""
    partly_scheduled_timeout: float = Field(default=60, ge=1)
    """Seconds for which an attempt may hold some nodes and lack others, while an earlier job does the same."""
    lease_namespace: str = "default"
    """Namespace of the Lease that elects the leader among the operators of an installation: theirs."""
    lease_name: str = "finetune-operator"
    """Its name."""
    identity: str = ""
    """Name of this operator in the Lease: that of its pod. Empty: the host's name and a random text."""
    operator_selector: str = ""
    """Labels of the installation's own pods, also of earlier releases. Empty: it has no pods (tests)."""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = "INFO"
    log_format: Literal["text", "json"] = "text"
    """Form of the log's lines."""
    metrics_per_job: Literal["status", "pods", "none"] = "status"
    """Where the metrics of single jobs come from. none: only sums are shown."""
    health_port: int = 8080
    """Port of /healthz and /readyz. 0: any free port (tests)."""
    health_stuck_seconds: float = 60
    """/healthz fails if a watch or a queued job makes no progress for so long."""


def from_environment(environment: dict[str, str]) -> Settings:
    """Read FINETUNE_*. Raises pydantic.ValidationError, which names what is missing or wrong."""
    prefix = "FINETUNE_"
    return Settings.model_validate(
        {key.removeprefix(prefix).lower(): value for key, value in environment.items() if key.startswith(prefix)}
    )
