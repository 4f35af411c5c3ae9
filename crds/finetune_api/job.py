"""FineTuneJob: the object, and the constants that name it."""

from typing import Literal

from pydantic import ConfigDict, Field

from finetune_api.base import ApiModel, cel
from finetune_api.job_name import NAME, NAME_MAX, JobName
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status.job_status import FineTuneJobStatus

GROUP = "finetune-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"
SINGULAR = "finetunejob"
SHORT = "ftj"

NAME_RULE = cel(
    f"self.metadata.name.size() <= {NAME_MAX} && self.metadata.name.matches('{NAME}')",
    f"metadata.name becomes part of host names: use at most {NAME_MAX} lower-case letters, digits and '-', start with a"
    " letter, end with a letter or digit, and use no dots",
)


class ObjectMeta(ApiModel):
    """The part of metadata that the operator and the trainer read. The API server owns the rest."""

    model_config = ConfigDict(extra="ignore")

    name: JobName
    """Name of the job."""
    namespace: str | None = None
    """Namespace of the job."""
    uid: str | None = None
    """Identity of the object. A job that is deleted and created again gets another uid."""
    generation: int | None = None
    """Number of changes of spec."""


class FineTuneJob(ApiModel):
    """A fine-tuning job: spec says what to train, status shows what happened."""

    api_version: Literal["finetune-operator.io/v1alpha1"]
    """Always finetune-operator.io/v1alpha1."""
    kind: Literal["FineTuneJob"]
    """Always FineTuneJob."""
    metadata: ObjectMeta
    """Name, namespace, labels."""
    spec: FineTuneJobSpec
    """What to train, on which data, and with which resources."""
    status: FineTuneJobStatus | None = Field(default=None, json_schema_extra={"default": {}})
    """Observed state of the job."""
