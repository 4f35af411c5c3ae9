"""spec.model: what is trained."""

import re
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic.config import JsonDict

from finetune_api.base import ApiModel, cel, validated
from finetune_api.job_name import JobName
from finetune_api.source import COMMIT, ModelSource

Token = Annotated[str, StringConstraints(min_length=1, max_length=128)]

PINNED = "a hub model's own code is run only from hf://org/name@<commit of 40 digits>: what it does must not change"
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
    """What is said of a model besides where it is."""

    trust_remote_code: bool = False
    """Run the code that the repository brings. The installation must allow it too, and a hub's revision must be a
    commit."""
    attention: Literal["auto", "eager", "sdpa", "flashAttention2"] = "auto"
    """Implementation of attention. auto: flashAttention2 where the GPU and the image have it, else sdpa."""
    new_tokens: list[Token] | None = Field(default=None, max_length=1024)
    """Words added to the vocabulary; their embeddings are trained."""
    new_special_tokens: list[Token] | None = Field(default=None, max_length=1024)
    """As newTokens, but never split by the tokenizer and skipped when decoded for people."""


class ModelSpec(ModelSettings):
    """The model to start from. Set exactly one of source and fromJob."""

    model_config = ConfigDict(json_schema_extra=validated(_RULES))

    source: ModelSource | None = None
    """A folder in Hugging Face layout (config.json, *.safetensors, tokenizer), as hf://org/name[@revision],
    s3://bucket/prefix or pvc://claim/path."""
    from_job: JobName | None = None
    """The artifact of another FineTuneJob of this namespace; this one waits until it is there. An adapter is continued
    where tuning.method is lora or qlora and tuning.lora is unset, else merged first; stage rm always merges one that
    isn't a reward model's."""

    @model_validator(mode="after")
    def _one_pinned(self) -> Self:
        if (self.source is None) == (self.from_job is None):
            raise ValueError(ONE_MODEL)
        if self.trust_remote_code and self.source is not None and not is_pinned(self.source):
            raise ValueError(PINNED)
        return self


def check_allowed(model: ModelSettings, *, allow_remote_code: bool) -> None:
    """Raises ValueError where a job would run a model's own code, and the installation doesn't let it."""
    if model.trust_remote_code and not allow_remote_code:
        raise ValueError(
            "model.trustRemoteCode is true, but this installation does not let jobs run a model's own code"
            " (chart value trainer.allowRemoteCode)"
        )


def is_pinned(source: str) -> bool:
    """Whether what lies there can't change behind a job's back: a hub's revisions can, unless they are commits."""
    return not source.startswith("hf://") or re.search(COMMIT, source) is not None
