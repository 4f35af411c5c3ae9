"""FineTuneJob: the object itself, and the constants that name it."""

from typing import Literal

from pydantic import ConfigDict

from finetune_api.base import ApiModel, cel
from finetune_api.job_name import NAME, NAME_MAX, JobName
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

GROUP = "finetune-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"
SINGULAR = "finetunejob"
SHORT = "ftj"

NAME_RULE = cel(
    f"self.metadata.name.size() <= {NAME_MAX} && self.metadata.name.matches('{NAME}')",
    f"metadata.name must be at most {NAME_MAX} lower-case letters, digits and '-', start with a letter and have no"
    " dots: it becomes a host name",
)


class ObjectMeta(ApiModel):
    """The part of metadata that matters here; the API server owns the rest."""

    model_config = ConfigDict(extra="ignore")

    name: JobName
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
