"""spec.model and spec.datasets: what is trained, and on what."""

from typing import Literal

from finetune_api.base import ApiModel
from finetune_api.source import Source


class ModelSpec(ApiModel):
    """The model to start from."""

    source: Source
    """A folder in Hugging Face layout (config.json, *.safetensors, tokenizer), as pvc://claim/path."""


class DatasetSpec(ApiModel):
    """One data set. Several are read one after the other, as if they were one."""

    source: Source
    """A .json (one list) or .jsonl (one object a line) file, as pvc://claim/path/file.jsonl."""
    format: Literal["alpaca", "openai"]
    """alpaca: instruction, input, output (system, history). openai: messages of {role, content}."""
