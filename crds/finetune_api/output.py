"""spec.output, spec.secrets and spec.reporting: targets of the artifact and the training curves, and their Secrets."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import ApiModel
from finetune_api.kubernetes import DnsName
from finetune_api.source import OutputUri

Address = Annotated[
    str,
    StringConstraints(
        pattern=r"^https?://([^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[^\s]*)?$", max_length=1024
    ),
]
"""A URL without user and password, which belong in a Secret."""
Label = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class OutputSpec(ApiModel):
    """Form of the artifact, and where a copy of it is uploaded."""

    uri: OutputUri | None = None
    """Where a copy of the artifact is uploaded: s3://bucket/prefix or hf://org/name[@branch]. It never overwrites the
    artifact of another training."""
    merge: bool = False
    """Methods lora and qlora: merge the adapter into the unquantized base, so that the artifact is a whole model.
    adapter/ keeps the adapter."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number type of a whole model's weights. auto: the type of the base model. Change it if your server requires
    another type."""
    weights: Literal["last", "best"] = "last"
    """last: weights of the last step. best: of the lowest evaluation loss (ppo: highest mean reward). best needs
    evaluation.everySteps."""


S3_KEYS = {
    "AWS_ACCESS_KEY_ID": True,
    "AWS_SECRET_ACCESS_KEY": True,
    "AWS_SESSION_TOKEN": False,
    "AWS_ENDPOINT_URL": False,
    "AWS_REGION": False,
}
"""Keys of the Secret that secrets.s3 names, and whether each is required."""


class SecretsSpec(ApiModel):
    """Names of Secrets in the job's namespace. Only the pods read them."""

    hugging_face: DnsName | None = None
    """Secret with the key HF_TOKEN, for hf:// sources and outputs. Set it for private or gated repositories."""
    s3: DnsName | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_REGION
    optional. Unset: workload identity."""


class WandbSpec(ApiModel):
    """Weights & Biases."""

    project: Label
    """Project that the run belongs to."""
    entity: Label | None = None
    """Team or user that owns the project. Unset: the default of the API key."""
    base_url: Address | None = None
    """URL of a self-hosted server. Unset: the public service."""
    secret: DnsName
    """Secret with the key WANDB_API_KEY."""


class MlflowSpec(ApiModel):
    """MLflow."""

    tracking_uri: Address
    """URL of the tracking server."""
    experiment: Label
    """Experiment that the run belongs to. It is created if it does not exist."""
    secret: DnsName | None = None
    """Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or with MLFLOW_TRACKING_TOKEN. Unset: no
    credentials."""


class ReportingSpec(ApiModel):
    """Trackers that receive the training curves. A tracker that does not answer never stops a run."""

    tensorboard: bool = False
    """Write event files for TensorBoard to jobs/<name>/reports/tensorboard in the workspace."""
    wandb: WandbSpec | None = None
    """Send the curves to Weights & Biases."""
    mlflow: MlflowSpec | None = None
    """Send the curves to MLflow."""


class NotifySpec(ApiModel):
    """A webhook that gets the end of the job."""

    secret: DnsName
    """Secret with the key url and, optionally, header (such as Authorization: Bearer TOKEN). Only a pod reads it."""
    when: list[Literal["Succeeded", "Failed"]] | None = Field(default=None, min_length=1, max_length=2)
    """Ends that it gets. Unset: both."""


def lacks_copy(output: OutputSpec, published: str | None) -> bool:
    """Whether an artifact is still to be copied to `output.uri`, given the URI of the copy that it has. On a hub, that
    URI names the commit instead of the branch."""
    if output.uri is None or published == output.uri:
        return False
    repository = output.uri.partition("@")[0]
    return not (output.uri.startswith("hf://") and (published or "").partition("@")[0] == repository)
