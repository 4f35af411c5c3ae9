"""spec.output and spec.secrets: where the artifact goes, and what opens the doors on the way."""

from typing import Literal

from finetune_api.base import ApiModel, DnsName
from finetune_api.source import OutputUri


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


class SecretsSpec(ApiModel):
    """Names of Secrets in the job's namespace. Only the pods read them."""

    hugging_face: DnsName | None = None
    """Secret with the key HF_TOKEN, for hf:// sources and outputs."""
    s3: DnsName | None = None
    """Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and if need be AWS_SESSION_TOKEN,
    AWS_ENDPOINT_URL and AWS_REGION. Unset: workload identity, by resources.serviceAccountName."""
