"""Prompts and answers apart, as formats preference and kto have them: each as text or as messages of either dialect."""

from finetune_api.data import ColumnsSpec, TagsSpec

from finetune_trainer.data.formats import alpaca, chats, turns
from finetune_trainer.data.formats.turns import Dialect, Turn
from finetune_trainer.data.formats.values import Fields, missing, optional_text, text
from finetune_trainer.data.samples import BadRow, Message


def dialect_of(row: Fields, columns: ColumnsSpec, tags: TagsSpec) -> Dialect:
    """sharegpt's where the row has its column, or its key in a message; else openai's."""
    sharegpt, openai = turns.sharegpt_dialect(tags), turns.openai_dialect(tags)
    if columns.messages is None and "conversations" in row:
        return sharegpt
    answers = (columns.chosen or "chosen", columns.response or "completion")
    for key in (columns.messages, columns.prompt or "prompt", *answers):
        value = row.get(key) if key else None
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, dict) and sharegpt.role in first and openai.role not in first:
            return sharegpt
    return openai


def prompt(row: Fields, columns: ColumnsSpec, dialect: Dialect) -> list[Turn]:
    """What was asked, in whichever column it is; empty where the row has none."""
    key = columns.prompt or ("prompt" if "prompt" in row else "instruction")
    if key in row:
        if isinstance(row[key], list) and row[key]:
            return turns.read(row[key], dialect)
        return [Turn(message["role"], message) for message in alpaca.prompt(row, columns, key)]
    key = columns.messages or ("conversations" if "conversations" in row else "messages")
    return turns.read(chats.messages(row, key, dialect), dialect) if key in row else []


def answer(row: Fields, key: str, dialect: Dialect) -> list[Turn]:
    """One answer: text, a message, or a list of messages."""
    if key not in row:
        raise missing(row, key, "an answer, as text or messages")
    value = row[key]  # text is never looked at as JSON: that may be the answer to learn
    if isinstance(value, dict):
        return turns.read([value], dialect)
    if isinstance(value, list) and value:
        return turns.read(value, dialect)
    said = text(row, key, "an answer, as text or messages")
    return [Turn(dialect.assistant, {"role": "assistant", "content": said})]


def apart(
    asked: list[Turn], answered: list[Turn], key: str, row: Fields, columns: ColumnsSpec, dialect: Dialect
) -> tuple[list[Message], list[Message]]:
    """Prompt and answer, checked as the one conversation that they are."""
    if not asked:
        raise BadRow("missing-column", "no prompt: expected prompt, instruction or messages with what was asked")
    if answered and answered[0].message["role"] != "assistant":
        found = f"{key}: found a first message of role {answered[0].tag!r}, expected {dialect.names('assistant')}"
        raise BadRow("wrong-role-order", found)
    if asked[-1].message["role"] == "assistant":
        found = f"the prompt ends with role {asked[-1].tag!r}, expected {dialect.names('user', 'tool')}"
        raise BadRow("wrong-role-order", found)
    system = optional_text(row, columns.system or "system")
    try:
        messages = turns.conversation([*asked, *answered], dialect, system)
    except BadRow as error:
        raise BadRow(error.rule, f"prompt with {key}: {error}") from None
    end = len(messages) - len(answered)
    return messages[:end], messages[end:]
