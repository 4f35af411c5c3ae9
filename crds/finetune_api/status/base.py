"""Base of every status model."""

from pydantic import ConfigDict

from finetune_api.base import ApiModel


class StatusModel(ApiModel):
    """Status is read leniently, unlike spec: a newer release may write fields that this release does not know."""

    model_config = ConfigDict(extra="ignore")
