"""What the installation decides, read once from the environment. The chart's values say what each is for."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _names(value: object) -> object:
    return [name for name in value.split(",") if name] if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class Settings(BaseModel):
    """Every field is read from FINETUNE_<NAME>."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    trainer_image: str
    """Image of training pods, unless a job names its own."""
    trainer_image_pull_policy: str = "IfNotPresent"
    trainer_pull_secrets: Annotated[list[str], BeforeValidator(_names)] = []
    """Names of pull secrets that every training pod gets; they must exist in the job's namespace."""
    trainer_cluster_role: str = "finetune-trainer"
    """The chart's ClusterRole of one rule: patch finetunejobs/status."""
    allow_cpu: bool = False
    """Let jobs that ask for GPUs train on the CPU: for clusters whose GPUs are make-believe."""
    allow_remote_code: bool = False
    """Let jobs run code that a model's repository brings (model.trustRemoteCode)."""
    read_node_labels: bool = False
    """Ask the nodes' labels how much memory a GPU has, where a job doesn't say (resources.gpuMemory)."""
    hub_endpoint: str = ""
    """HF_ENDPOINT of the pods: a mirror of the Hugging Face hub. Empty: the hub itself."""
    s3_endpoint: str = ""
    """AWS_ENDPOINT_URL of the pods, unless a job's own Secret names another. Empty: AWS."""
    progress_interval_seconds: int = Field(default=15, ge=1)
    """Shortest time between two progress writes of one job."""
    resync_seconds: float = Field(default=300, gt=0)
    """Everything is listed and looked at anew this often: what repairs a lost watch event."""
    workers: int = Field(default=16, ge=1)
    """Jobs reconciled at once."""
    retry_seconds: float = Field(default=10, gt=0)
    """Wait before the first retry; doubled for each attempt in a row without a newer checkpoint."""
    retry_seconds_max: float = 600
    """Longest wait before a retry."""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = "INFO"
    health_port: int = 8080
    """0: any free port (tests)."""
    health_stuck_seconds: float = 60
    """/healthz fails when a watch or a queued job makes no headway for so long."""


def from_environment(environment: dict[str, str]) -> Settings:
    """Read FINETUNE_*; raises pydantic.ValidationError naming what is missing or wrong."""
    prefix = "FINETUNE_"
    return Settings.model_validate(
        {key.removeprefix(prefix).lower(): value for key, value in environment.items() if key.startswith(prefix)}
    )
