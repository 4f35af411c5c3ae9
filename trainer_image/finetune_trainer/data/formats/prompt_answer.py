"""Prompts and answers in separate columns, as formats preference and kto have them: as text, or as messages of either
dialect."""

from collections.abc import Sequence

from finetune_trainer.data.formats import alpaca, conversations
from finetune_trainer.data.formats.fields import Fields
from finetune_trainer.data.formats.layout import Dialect
from finetune_trainer.data.formats.messages import Turn, checked_conversation, parse_turns, system_of
from finetune_trainer.data.samples import Message, RowError

ANSWER = "an answer, as text or messages"


def dialect_of(fields: Fields) -> Dialect:
    """sharegpt if the row has its column, or its key in a message; otherwise openai."""
    row, layout, columns = fields.row, fields.layout, fields.layout.columns
    sharegpt, openai = layout.sharegpt, layout.openai
    answers = (columns.chosen or "chosen", columns.response or "completion")
    messages = columns.messages or "conversations"
    for key in (messages, columns.prompt or "prompt", *answers):
        value = row.get(key)
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, dict):
            return sharegpt if sharegpt.role in first and openai.role not in first else openai
    return sharegpt if columns.messages is None and "conversations" in row else openai


def prompt(fields: Fields, dialect: Dialect, answers: Sequence[list[Turn]] = ()) -> list[Turn]:
    """The prompt, from the columns that hold it, which must agree; empty if the row has no prompt. A column may hold
    the whole conversation, with one of ``answers`` at its end."""
    found: list[Turn] = []
    before = ""
    for key in _prompt_columns(fields):
        turns = _prompt_of(fields, key, dialect)
        for answer in answers:
            if len(turns) > len(answer) and _alike(turns[-len(answer) :], answer):
                turns = turns[: -len(answer)]
                break
        found = joined(found, turns, f"{before} and {key}") if before else turns
        before = key
    return found


def joined(first: list[Turn], second: list[Turn], names: str) -> list[Turn]:
    """What two columns say of the prompt: one contains the other at its begin or end, or the end of the first is the
    begin of the second. Raises RowError if they differ: then nobody knows which is the prompt."""
    if not first or not second:
        return first or second
    if _alike(second[: len(first)], first) or _alike(second[-len(first) :], first):
        return second
    if _alike(first[: len(second)], second):
        return first
    for size in range(min(len(first), len(second)), 0, -1):
        if _alike(first[-size:], second[:size]):
            return first + second[size:]
    raise RowError(
        "no-common-prompt",
        f"{names} have different prompts, expected the same prompt, or an overlap. Remove either, or set columns.prompt"
        " or columns.messages to the column that has the prompt",
    )


def answer(fields: Fields, key: str, dialect: Dialect) -> list[Turn]:
    """An answer: text, a message, or a list of messages."""
    value = fields.get(key)  # text is never parsed as JSON: JSON may be the answer to learn
    if isinstance(value, dict):
        return parse_turns([value], dialect, fields, key)
    if isinstance(value, list) and value:
        return parse_turns(value, dialect, fields, key)
    content = fields.text(key, ANSWER)
    return [Turn(dialect.assistant, {"role": "assistant", "content": content})]


def checked_pair(
    prompt: list[Turn], answer: list[Turn], key: str, fields: Fields, dialect: Dialect
) -> tuple[list[Message], list[Message]]:
    """Messages of prompt and answer, checked as a single conversation. ``key``: column of the answer, for messages."""
    if not prompt:
        raise RowError("missing-column", "no prompt: expected a column prompt, instruction or messages")
    if answer and answer[0].message["role"] != "assistant":
        message = f"{key}: found a first message of role {answer[0].tag!r}, expected {dialect.names('assistant')}"
        raise RowError("wrong-role-order", message)
    if prompt[-1].message["role"] == "assistant":
        message = f"the prompt ends with role {prompt[-1].tag!r}, expected {dialect.names('user', 'tool')}"
        raise RowError("wrong-role-order", message)
    try:
        messages = checked_conversation([*prompt, *answer], dialect, system_of(fields, prompt))
    except RowError as error:
        raise RowError(error.rule, f"prompt with {key}: {error}") from None
    end = len(messages) - len(answer)
    return messages[:end], messages[end:]


def _prompt_columns(fields: Fields) -> list[str]:
    """The columns that hold the prompt. If the job names some, the others are not read."""
    columns = fields.layout.columns
    if columns.prompt or columns.messages:
        return [key for key in (columns.prompt, columns.messages) if key and key in fields.row]
    present: list[str] = [
        key
        for key in ("prompt", "instruction", "conversations", "messages")
        if key in fields.row and key not in fields.layout.named
    ]
    return [key for key in present if fields.has(key)] or present[:1]


def _prompt_of(fields: Fields, key: str, dialect: Dialect) -> list[Turn]:
    value = fields.row[key]
    if isinstance(value, list) and value:
        return parse_turns(fields.get(key), dialect, fields, key)
    if key in ("conversations", "messages") or key == fields.layout.columns.messages:
        return parse_turns(conversations.raw_messages(fields, key, dialect), dialect, fields, key)
    return [Turn(message["role"], message) for message in alpaca.prompt(fields, key)]


def _alike(first: Sequence[Turn], second: Sequence[Turn]) -> bool:
    """Whether turns say the same. White space around a text is no difference: a column often is a stripped copy."""
    return len(first) == len(second) and all(
        a == b or {**a, "content": a["content"].strip()} == {**b, "content": b["content"].strip()}
        for (_, a), (_, b) in zip(first, second, strict=True)
    )
