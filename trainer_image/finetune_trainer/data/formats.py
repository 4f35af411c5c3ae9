"""A row in one of the formats users have -> a conversation, the one form that the rest knows.

Called by `dataset` for every row. A row that doesn't fit raises `BadRow` with what was found and what was expected;
the caller adds file and line. A format is a function; `FORMATS` names them.
"""

from collections.abc import Callable
from typing import Any, Literal, TypedDict


class Message(TypedDict):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


Conversation = list[Message]
"""An optional system message, then user and assistant in turns; the last is the assistant's."""


class BadRow(ValueError):
    """Why a row can't be used, for the user."""


def alpaca(row: dict[str, Any]) -> Conversation:
    """instruction, input, output; optionally system and history, a list of [question, answer]."""
    if not row.get("instruction") and "messages" in row:
        raise BadRow("has 'messages' but no 'instruction': this looks like format: openai")
    question = _text(row, "instruction", "the question or task")
    if row.get("input") is not None and (extra := _text(row, "input", "text or nothing", empty=True)):
        question = f"{question}\n{extra}"
    answer = _text(row, "output", "the answer to learn")
    conversation: Conversation = []
    if row.get("system") is not None and (system := _text(row, "system", "text or nothing", empty=True)):
        conversation.append({"role": "system", "content": system})
    for number, pair in enumerate(_list(row, "history"), start=1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) and p.strip() for p in pair)):
            raise BadRow(f"history {number}: found {_shown(pair)}, expected [question, answer], both non-empty text")
        conversation += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [*conversation, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def openai(row: dict[str, Any]) -> Conversation:
    """messages: a list of {role, content}."""
    if "messages" not in row:
        hint = ": this looks like format: alpaca" if "instruction" in row else ""
        raise BadRow(f"no 'messages'{hint}; found {_keys(row)}, expected messages: [{{role, content}}, ...]")
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"messages: found {_shown(messages)}, expected a non-empty list of {{role, content}}")
    if row.get("tools"):
        raise BadRow("tools: tool calls can't be trained on yet; remove the row or its tools")
    conversation = [_message(message, number) for number, message in enumerate(messages, start=1)]
    turns = conversation[1:] if conversation[0]["role"] == "system" else conversation
    first = len(conversation) - len(turns) + 1
    for number, turn in enumerate(turns, start=first):
        expected = "user" if (number - first) % 2 == 0 else "assistant"
        if turn["role"] != expected:
            raise BadRow(
                f"message {number}: found role {turn['role']!r}, expected {expected!r}: after an optional system"
                " message, user and assistant take turns"
            )
    if not turns or turns[-1]["role"] != "assistant":
        raise BadRow(f"found a last message of role {conversation[-1]['role']!r}, expected 'assistant': what is learnt")
    return conversation


FORMATS: dict[str, Callable[[dict[str, Any]], Conversation]] = {"alpaca": alpaca, "openai": openai}


def parse(value: Any, format_name: str) -> Conversation:
    """The conversation in one row of a file."""
    if isinstance(value, ValueError):  # what sources.read yields for a line that is no JSON
        raise BadRow(f"not JSON: {value}, expected one object a line")
    if not isinstance(value, dict):
        raise BadRow(f"found {_shown(value)}, expected an object")
    return FORMATS[format_name](value)


def _message(message: Any, number: int) -> Message:
    if not isinstance(message, dict):
        raise BadRow(f"message {number}: found {_shown(message)}, expected {{role, content}}")
    role, content = message.get("role"), message.get("content")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise BadRow(f"message {number}: tool calls can't be trained on yet; remove the row or its tool messages")
    if role not in ("system", "user", "assistant"):
        raise BadRow(f"message {number}: found role {_shown(role)}, expected 'system', 'user' or 'assistant'")
    if role == "system" and number > 1:
        raise BadRow(f"message {number}: found role 'system', expected it in the first place only")
    if not isinstance(content, str):
        raise BadRow(f"message {number}: found content {_shown(content)}, expected text")
    if role != "system" and not content.strip():
        raise BadRow(f"message {number}: found empty content, expected text")
    return {"role": role, "content": content}


def _text(row: dict[str, Any], key: str, meaning: str, empty: bool = False) -> str:
    if key not in row:
        raise BadRow(f"no {key!r}; found {_keys(row)}, expected {key}: {meaning}")
    value = row[key]
    if not isinstance(value, str):
        raise BadRow(f"{key}: found {_shown(value)}, expected {meaning}")
    if not empty and not value.strip():
        raise BadRow(f"{key}: found empty text, expected {meaning}")
    return value


def _list(row: dict[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRow(f"{key}: found {_shown(value)}, expected a list")
    return value


def _keys(row: dict[str, Any]) -> str:
    return "the keys " + ", ".join(list(map(str, row))[:8]) if row else "an empty object"


def _shown(value: Any) -> str:
    """A value as a user recognises it, short enough for a message."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
