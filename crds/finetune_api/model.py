"""spec.model: the model that training starts from."""

import re
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from finetune_api.base import ApiModel, cel, validated
from finetune_api.job_name import JobName
from finetune_api.source import COMMIT, ModelSource

Token = Annotated[str, StringConstraints(min_length=1, max_length=128)]

PINNED = "code of a hub model runs only from a fixed revision: set source to hf://org/name@<commit of 40 digits>"
ONE_MODEL = "set exactly one of source and fromJob"
_RULES: list[JsonDict] = [
    cel("has(self.source) != has(self.fromJob)", ONE_MODEL),
    cel(
        "!self.trustRemoteCode || !has(self.source) || !self.source.startsWith('hf://')"
        f" || self.source.matches(r'{COMMIT}')",
        PINNED,
    ),
]


class ModelSettings(ApiModel):
    """Settings of a model, apart from its source."""

    trust_remote_code: bool = False
    """Run Python code from the model's repository. The installation must allow it, and an hf:// source must name a
    commit of 40 digits."""
    attention: Literal["auto", "eager", "sdpa", "flashAttention2"] = "auto"
    """Implementation of attention. auto: each document by itself, without padding, if the model supports it
    (docs/models.md). Change it if a model needs another."""
    new_tokens: list[Token] | None = Field(default=None, max_length=1024)
    """Words to add to the vocabulary; their embeddings are trained. Set it for terms of your domain that the tokenizer
    splits badly."""
    new_special_tokens: list[Token] | None = Field(default=None, max_length=1024)
    """Special tokens to add. The tokenizer never splits them, and decoded text omits them. Set it for markers of your
    own format."""


class ModelSpec(ModelSettings):
    """Model that training starts from. Set exactly one of source and fromJob."""

    model_config = ConfigDict(json_schema_extra=validated(_RULES))

    source: ModelSource | None = None
    """Directory in Hugging Face layout: hf://org/name[@revision], s3://bucket/prefix or pvc://claim/path."""
    from_job: JobName | None = None
    """FineTuneJob in this namespace whose artifact is the model; this job waits for it. See docs/chaining.md for
    adapters."""

    @model_validator(mode="after")
    def _pinned_source(self) -> Self:
        if (self.source is None) == (self.from_job is None):
            raise ValueError(ONE_MODEL)
        if self.trust_remote_code and self.source is not None and not is_pinned(self.source):
            raise ValueError(PINNED)
        return self


def check_allowed(model: ModelSettings, *, allow_remote_code: bool) -> None:
    """Raises ValueError if the job runs code from a model's repository, and the installation does not allow it."""
    if model.trust_remote_code and not allow_remote_code:
        raise ValueError(
            "model.trustRemoteCode is true, but this installation does not let jobs run code from a model's repository:"
            " remove it, or set the chart value trainer.allowRemoteCode"
        )


def is_pinned(source: str) -> bool:
    """Whether the content of a source is fixed. A revision of a hub can change, unless it is a commit."""
    return not source.startswith("hf://") or re.search(COMMIT, source) is not None
