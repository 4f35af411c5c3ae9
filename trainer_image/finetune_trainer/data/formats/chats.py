"""Formats openai and sharegpt: a conversation as a list of messages, in two dialects."""

from typing import Any

from finetune_api.data import ColumnsSpec, TagsSpec

from finetune_trainer.data.formats import turns
from finetune_trainer.data.formats.tools import tools
from finetune_trainer.data.formats.values import Fields, from_json, missing, optional_text, shown
from finetune_trainer.data.samples import BadRow, Conversation, Prompt


def openai(row: Fields, columns: ColumnsSpec, tags: TagsSpec) -> Conversation:
    """messages: a list of {role, content}; optionally system and tools."""
    return _chat(row, columns.messages or "messages", columns, turns.openai_dialect(tags))


def sharegpt(row: Fields, columns: ColumnsSpec, tags: TagsSpec) -> Conversation:
    """conversations: a list of {from, value}; optionally system and tools."""
    return _chat(row, columns.messages or "conversations", columns, turns.sharegpt_dialect(tags))


def prompt(row: Fields, columns: ColumnsSpec, dialect: turns.Dialect, key: str) -> Prompt:
    """What a conversation asks last."""
    said = turns.read(messages(row, columns.messages or key, dialect), dialect)
    system = optional_text(row, columns.system or "system")
    return Prompt(turns.asked(said, dialect, system), tools(row, columns))


def messages(row: Fields, key: str, dialect: turns.Dialect) -> list[Any]:
    """The raw messages of a column; also as JSON, the only way in which csv can hold them."""
    expected = f"{{{dialect.role}, {dialect.content}}}"
    if key not in row:
        raise missing(row, key, f"[{expected}, ...]")
    value = from_json(row[key])
    if not isinstance(value, list) or not value:
        raise BadRow("wrong-type", f"{key}: found {shown(value)}, expected a non-empty list of {expected}")
    return value


def _chat(row: Fields, key: str, columns: ColumnsSpec, dialect: turns.Dialect) -> Conversation:
    said = turns.read(messages(row, key, dialect), dialect)
    system = optional_text(row, columns.system or "system")
    return Conversation(turns.conversation(said, dialect, system), tools(row, columns))
