"""A row in one of the formats users have -> a sample, the one form that the rest knows.

Called in preparation's worker processes for every row. A row that doesn't fit raises `BadRow` with a rule, what was
found and what was expected; the caller adds file and line. Nothing else is ever raised, whatever the row holds.
"""

from typing import Any

from finetune_api.data import ColumnsSpec, TagsSpec

from finetune_trainer.data.formats import alpaca, chats, kto, preference, text, turns
from finetune_trainer.data.formats.tools import tools
from finetune_trainer.data.formats.values import shown
from finetune_trainer.data.samples import BadRow, Prompt, Sample

__all__ = ["parse", "prompt"]


def parse(value: Any, format: str, columns: ColumnsSpec | None = None, tags: TagsSpec | None = None) -> Sample:
    """What one row of a file means."""
    columns, tags = columns or ColumnsSpec(), tags or TagsSpec()
    _check_object(value)
    match format:
        case "alpaca":
            return alpaca.alpaca(value, columns)
        case "sharegpt":
            return chats.sharegpt(value, columns, tags)
        case "openai":
            return chats.openai(value, columns, tags)
        case "text":
            return text.text(value, columns)
        case "preference":
            return preference.preference(value, columns, tags)
        case "kto":
            return kto.kto(value, columns, tags)
    raise AssertionError(f"the API has no format {format!r}")


def prompt(value: Any, format: str, columns: ColumnsSpec | None = None, tags: TagsSpec | None = None) -> Prompt:
    """What one row of a file asks. Its answer, which stage ppo has the model give, is left out if there is one."""
    columns, tags = columns or ColumnsSpec(), tags or TagsSpec()
    _check_object(value)
    match format:
        case "alpaca":
            return Prompt(alpaca.prompt(value, columns, columns.prompt or "instruction"), tools(value, columns))
        case "sharegpt":
            return chats.prompt(value, columns, turns.sharegpt_dialect(tags), "conversations")
        case "openai":
            return chats.prompt(value, columns, turns.openai_dialect(tags), "messages")
        case "preference":
            pair = preference.preference(value, columns, tags)
            return Prompt(pair.prompt, pair.tools)
    raise AssertionError(f"the API lets stage ppo read no format {format!r}")


def _check_object(value: Any) -> None:
    if not isinstance(value, dict):
        raise BadRow("not-an-object", f"found {shown(value)}, expected an object")
