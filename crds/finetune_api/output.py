"""spec.output, spec.secrets and spec.reporting: where the artifact and the curves go, and what opens the doors on the
way."""

from typing import Annotated, Literal

from pydantic import StringConstraints

from finetune_api.base import ApiModel, DnsName
from finetune_api.source import OutputUri

Address = Annotated[
    str,
    StringConstraints(
        pattern=r"^https?://([^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[^\s]*)?$", max_length=1024
    ),
]
"""No user or password in it: those belong in a Secret."""
Label = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class OutputSpec(ApiModel):
    """The artifact."""

    uri: OutputUri | None = None
    """Copy the artifact there, besides the workspace: s3://bucket/prefix or hf://org/name[@branch]. What is there of
    another training is never overwritten."""
    merge: bool = False
    """Methods lora and qlora: the artifact is the whole model with the adapter merged into the unquantised base. The
    adapter itself is kept beside it, in adapter/."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number type of a whole model's weights. auto: the one that the base model came in."""
    weights: Literal["last", "best"] = "last"
    """best: the artifact is the checkpoint with the lowest evaluation loss (of ppo: the highest mean reward, as it
    is learned from); needs evaluation.everySteps."""


class SecretsSpec(ApiModel):
    """Names of Secrets in the job's namespace. Only the pods read them."""

    hugging_face: DnsName | None = None
    """Secret with the key HF_TOKEN, for hf:// sources and outputs."""
    s3: DnsName | None = None
    """Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and if need be AWS_SESSION_TOKEN,
    AWS_ENDPOINT_URL and AWS_REGION. Unset: workload identity, by resources.serviceAccountName."""


class WandbSpec(ApiModel):
    """Weights & Biases."""

    project: Label
    """Project of the run."""
    entity: Label | None = None
    """Team or user. Unset: the key's own."""
    base_url: Address | None = None
    """A server of one's own."""
    secret: DnsName
    """Secret with the key WANDB_API_KEY."""


class MlflowSpec(ApiModel):
    """MLflow."""

    tracking_uri: Address
    """The tracking server."""
    experiment: Label
    """Experiment of the run; it is made if it isn't there."""
    secret: DnsName | None = None
    """Secret with the keys MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."""


class ReportingSpec(ApiModel):
    """Where curves go while the job trains, besides the workspace. A tracker that doesn't answer never stops a run."""

    tensorboard: bool = False
    """Write event files for TensorBoard into jobs/<name>/reports/tensorboard."""
    wandb: WandbSpec | None = None
    """Send them to Weights & Biases."""
    mlflow: MlflowSpec | None = None
    """Send them to MLflow."""
