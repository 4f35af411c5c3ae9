"""Single rows as samples, for tests."""

from typing import Any

from finetune_api.data import ColumnsSpec, TagsSpec
from finetune_trainer.data.formats import Layout, read
from finetune_trainer.data.samples import Sample


def parse(value: Any, format: str, columns: ColumnsSpec | None = None, tags: TagsSpec | None = None) -> Sample:
    """The sample of a row."""
    return read(value, Layout(format, columns, tags)).sample


def parse_prompt(value: Any, format: str) -> Sample:
    """The prompt of a row, as stage ppo reads it."""
    return read(value, Layout(format), prompt=True).sample
