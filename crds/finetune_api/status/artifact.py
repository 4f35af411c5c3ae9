"""The artifact of a training, and how another job refers to it."""

from typing import Literal

from pydantic import Field

from finetune_api.base import ShortText, Text
from finetune_api.status.base import StatusModel


class Artifact(StatusModel):
    """The artifact of a training."""

    uri: Text
    """Directory of the artifact, as pvc://claim/path."""
    kind: Literal["adapter", "model"]
    """Form of the artifact: a LoRA adapter for spec.model, or a whole model."""
    digest: ShortText
    """sha256 over names and contents of the artifact's files."""
    size_bytes: int = Field(ge=0)
    """Total size of the files in bytes."""
    published: Text | None = None
    """URI of the uploaded copy, with its revision if the target has revisions."""
    base: Text | None = None
    """Source of the base model that the adapter needs."""
    base_adapter: bool = False
    """Whether an earlier adapter, kept with this adapter, must be merged into the base first."""
    base_digest: ShortText | None = None
    """sha256 of the model that training started from, without its Python files."""
    tokenizer_digest: ShortText | None = None
    """sha256 of the tokenizer's behaviour, which must be equal in jobs that work together."""


class Reference(StatusModel):
    """Artifact of another job that this job uses, fixed when this job was accepted."""

    use: Literal["model", "reference", "rewardModel"]
    """Use of the artifact: the model, the reference model or the reward model."""
    job: ShortText
    """Name of the other job."""
    uid: ShortText
    """uid of the other job."""
    stage: ShortText
    """Stage of the other job."""
    artifact: Artifact
    """Artifact of the other job."""
