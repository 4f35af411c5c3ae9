"""Formats openai and sharegpt: a conversation as a list of messages, in two dialects."""

from typing import Any

from finetune_trainer.data.formats.fields import Fields, is_empty, parse_json, shown
from finetune_trainer.data.formats.layout import Dialect
from finetune_trainer.data.formats.messages import (
    Turn,
    checked_conversation,
    checked_prompt,
    parse_turns,
    system_of,
)
from finetune_trainer.data.samples import Conversation, Prompt, RowError

COLUMNS = {"openai": "messages", "sharegpt": "conversations"}
"""Format -> column of its messages."""


def conversation(fields: Fields, dialect: Dialect) -> Conversation:
    """messages (openai) or conversations (sharegpt): a list of messages; optionally system and tools."""
    turns = _turns(fields, dialect)
    return Conversation(checked_conversation(turns, dialect, system_of(fields, turns)), fields.tools)


def prompt(fields: Fields, dialect: Dialect) -> Prompt:
    """The conversation up to its last question."""
    turns = _turns(fields, dialect)
    messages = checked_prompt(turns, dialect, system_of(fields, turns))
    if turns[-1].message["role"] == "assistant":
        fields.unused.add("the last answer")
    return Prompt(messages, fields.tools)


def raw_messages(fields: Fields, key: str, dialect: Dialect) -> list[Any]:
    """The unparsed messages of a column. They may be JSON, because csv has no other lists."""
    value = parse_json(fields.get(key), key)
    if not isinstance(value, list) or not value:
        expected = f"a non-empty list of {{{dialect.role}, {dialect.content}}}"
        raise RowError("wrong-type", f"{key}: found {shown(value)}, expected {expected}")
    return value


def _turns(fields: Fields, dialect: Dialect) -> list[Turn]:
    key = fields.column("messages", COLUMNS[dialect.format])
    if key is not None and key not in fields.row and fields.layout.columns.messages is None:
        prompt, completion = fields.row.get("prompt"), fields.row.get("completion")
        if isinstance(prompt, list) and isinstance(completion, list | dict) and not is_empty(completion):
            return _prompt_and_completion(fields, dialect)
    meaning = f"[{{{dialect.role}, {dialect.content}}}, ...]"
    key = fields.required("messages", COLUMNS[dialect.format], meaning=meaning)
    return parse_turns(raw_messages(fields, key, dialect), dialect, fields, key)


def _prompt_and_completion(fields: Fields, dialect: Dialect) -> list[Turn]:
    """TRL's form of a conversation, of which only the completion is trained."""
    asked = parse_turns(raw_messages(fields, "prompt", dialect), dialect, fields, "prompt")
    for turn in asked:
        if turn.message["role"] == "assistant":
            turn.message["weight"] = 0
    answer = fields.get("completion")
    answers = answer if isinstance(answer, list) else [answer]
    return asked + parse_turns(answers, dialect, fields, "completion")
