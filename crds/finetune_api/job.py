"""FineTuneJob: the object itself, and the constants that name it."""

from typing import Annotated, Literal

from pydantic import ConfigDict, StringConstraints

from finetune_api.base import ApiModel, cel
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

GROUP = "finetune-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"
SINGULAR = "finetunejob"
SHORT = "ftj"

NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_MAX = 40
"""A name becomes part of host names of at most 63 characters: <name>-<5 of uid>-<attempt>-<rank>."""
NAME_RULE = cel(
    f"self.metadata.name.size() <= {NAME_MAX} && self.metadata.name.matches('{NAME}')",
    f"metadata.name must be at most {NAME_MAX} lower-case letters, digits and '-', start with a letter and have no"
    " dots: it becomes a host name",
)


class ObjectMeta(ApiModel):
    """The part of metadata that matters here; the API server owns the rest."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, StringConstraints(pattern=NAME, max_length=NAME_MAX)]
    """Name of the job."""
    namespace: str | None = None
    """Its namespace."""
    uid: str | None = None
    """Its identity; a job deleted and made again has another."""
    generation: int | None = None
    """Counts changes of spec."""


class FineTuneJob(ApiModel):
    """One fine-tuning of one model: what to do in spec, what became of it in status."""

    api_version: Literal["finetune-operator.io/v1alpha1"]
    """finetune-operator.io/v1alpha1"""
    kind: Literal["FineTuneJob"]
    """FineTuneJob"""
    metadata: ObjectMeta
    """Name, namespace, labels."""
    spec: FineTuneJobSpec
    """What to do."""
    status: FineTuneJobStatus | None = None
    """What became of it."""
