"""The messages of a row: parsed by the names that a format uses, with the order of their roles checked.

Every format with messages uses it. Roles become those of chat templates: system, user, assistant, tool. A key of a
message that has a value is used, refused, or noted as not used.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from finetune_api.data import MEDIA

from finetune_trainer.data.formats.fields import Fields, is_empty, keys_of, media_error, shown
from finetune_trainer.data.formats.layout import Dialect
from finetune_trainer.data.formats.tools import function_call, tool_calls
from finetune_trainer.data.samples import Message, Role, RowError

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys that hold the reasoning before an answer. Servers and data sets use all of them."""
_THOUGHT = re.compile(r"\s*<think>\s*(.*?)\s*</think>", re.DOTALL)
KNOWN_ROLES = {
    "user": ("user", "human", "customer", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model", "ai"),
    "system": ("system", "developer"),
    "observation": ("tool", "observation", "function", "function_response", "ipython"),
    "function": ("function_call",),
}
"""Field of ``tags`` -> what data sets call that role."""


class Turn(NamedTuple):
    """A message, and the name of its role in the data."""

    tag: str
    message: Message


def parse_turns(messages: list[Any], dialect: Dialect, fields: Fields, key: str) -> list[Turn]:
    """Parse each message of a column; the order of roles is not checked. Consecutive observations of sharegpt, which
    cannot name the call that each answers, are joined."""
    turns: list[Turn] = []
    for number, value in enumerate(messages, start=1):
        turn = _parse_turn(value, f"message {number}", dialect, fields, key)
        if dialect.function and turns and turn.message["role"] == turns[-1].message["role"] == "tool":
            before = turns[-1].message
            before["content"] += "\n" + turn.message["content"]
            lost = turn.message.items() - before.items() - {("content", turn.message["content"])}
            fields.unused.update(f"{key}[].{name}" for name, _ in lost)
        else:
            turns.append(turn)
    return turns


def checked_conversation(turns: Sequence[Turn], dialect: Dialect, system: str = "") -> list[Message]:
    """Messages in an order that can be trained: optionally a system message, then user and assistant in turns, with
    tool messages instead of the user's; the last is the assistant's. ``system`` is used if the messages have no system
    message."""
    messages = _checked_order(turns, dialect, system)
    last = turns[-1] if turns else None
    if last is None or last.message["role"] != "assistant":
        found = f"a last message of role {last.tag!r}" if last else "no message"
        raise RowError("no-answer", f"found {found}, expected {dialect.names('assistant')}: the answer to learn")
    return messages


def checked_prompt(turns: Sequence[Turn], dialect: Dialect, system: str = "") -> list[Message]:
    """As `checked_conversation`, but up to the last question to the assistant, whether or not an answer follows."""
    messages = _checked_order(turns, dialect, system)
    if messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise RowError("no-prompt", f"found no message of role {dialect.names('user')}, expected a question or task")
    return messages


def system_of(fields: Fields, turns: Sequence[Turn]) -> str:
    """The system message that a column holds; empty if the messages have their own."""
    key = fields.column("system", "system")
    system = fields.optional_text(key)
    if turns and turns[0].message["role"] == "system":
        if system.strip() and system != turns[0].message["content"]:
            fields.unused.add(str(key))
        return ""
    return system


def _checked_order(turns: Sequence[Turn], dialect: Dialect, system: str) -> list[Message]:
    start = 1 if turns and turns[0].message["role"] == "system" else 0
    allowed: tuple[Role, ...] = ("user",)
    for number, (tag, message) in enumerate(turns[start:], start=start + 1):
        role = message["role"]
        if role == "system":
            raise RowError("wrong-role-order", f"message {number}: found role {tag!r}, expected it only as message 1")
        if role not in allowed:
            raise RowError(
                "wrong-role-order",
                f"message {number}: found role {tag!r}, expected {dialect.names(*allowed)}: after an optional system"
                f" message, {dialect.user} and {dialect.assistant} take turns",
            )
        if role == "assistant":
            allowed = ("user", "tool")
        else:
            allowed = ("assistant", "tool") if role == "tool" and not dialect.function else ("assistant",)
    messages = [turn.message for turn in turns]
    return [{"role": "system", "content": system}, *messages] if system.strip() and not start else messages


def _parse_turn(value: Any, place: str, dialect: Dialect, fields: Fields, key: str) -> Turn:
    if not isinstance(value, dict):
        raise RowError("wrong-type", f"{place}: found {shown(value)}, expected {{{dialect.role}, {dialect.content}}}")
    tag = value.get(dialect.role)
    if not isinstance(tag, str) or tag not in dialect.roles:
        raise _unknown_role(value, tag, place, dialect, fields)
    rest = {name: inner for name, inner in value.items() if not is_empty(inner)}
    del rest[dialect.role]
    role = dialect.roles[tag]
    content = rest.pop(dialect.content, None)
    message: Message = {"role": role, "content": ""}
    if rest and role == "assistant":
        _take_answer_keys(rest, message, place, fields, key)
    if tag == dialect.function and not (content is None and message.get("tool_calls")):
        if message.get("tool_calls"):
            raise RowError("bad-tools", f"{place}: found calls in {dialect.content} and in tool_calls, expected either")
        given = isinstance(content, str) and "reasoning_content" not in message
        if given and (thought := _THOUGHT.match(content)):
            # LLaMA-Factory's data writes reasoning before the JSON of a call.
            content = content[thought.end() :]
            message.setdefault("reasoning_content", thought[1])
        message["tool_calls"] = function_call(content, place, fields, f"{key}[].{dialect.content}")
    else:
        message["content"] = _content(value, message, place, dialect, fields, key)
    if rest:
        _take_names(rest, message)
        for name in rest:
            if name in (*MEDIA, "image", "video", "audio"):
                raise media_error(f"{place}: {name}", rest[name])
        fields.unused.update(f"{key}[].{name}" for name in rest)
    return Turn(tag, message)


def _content(value: dict[Any, Any], message: Message, place: str, dialect: Dialect, fields: Fields, key: str) -> str:
    """The text of a message. Beside calls it may be missing."""
    name, calls = dialect.content, message.get("tool_calls")
    content = value.get(name)
    if content is None and calls:
        return ""
    if isinstance(content, list):
        content = _joined_parts(content, f"{place}: {name}", fields, f"{key}[].{name}[]")
    if not isinstance(content, str):
        hint = "" if name in value else f"; found {keys_of(value)}: set tags.content if another key has the text"
        raise RowError("wrong-type", f"{place}: found {name} {shown(content)}, expected text{hint}")
    if not content.strip() and message["role"] in ("user", "assistant") and not calls:
        raise RowError("empty-text", f"{place}: found empty {name}, expected text")
    return content


def _joined_parts(parts: list[Any], place: str, fields: Fields, key: str) -> str:
    """The text of a content in parts, as OpenAI writes it."""
    texts: list[str] = []
    for number, part in enumerate(parts, start=1):
        rest = {name: inner for name, inner in part.items() if not is_empty(inner)} if isinstance(part, dict) else {}
        kind, text = rest.pop("type", "text"), rest.pop("text", None)
        if kind != "text":
            raise RowError("media", f"{place}: part {number} is of type {str(kind)[:40]!r}, but only 'text' is trained")
        if not isinstance(text, str):
            raise RowError("wrong-type", f"{place}: part {number}: found {shown(part)}, expected {{type: text, text}}")
        texts.append(text)
        fields.unused.update(f"{key}.{name}" for name in rest)
    return "\n".join(texts)


def _take_answer_keys(rest: dict[Any, Any], message: Message, place: str, fields: Fields, key: str) -> None:
    """Move what only an assistant's message has from ``rest`` to the message."""
    found = [name for name in ("tool_calls", "function_call") if name in rest]
    if len(found) > 1 and rest[found[0]] != rest[found[1]]:
        raise RowError("bad-tools", f"{place}: found tool_calls and function_call, expected either")
    for name in found:
        message["tool_calls"] = tool_calls(rest.pop(name), f"{place}: {name}", fields, f"{key}[].{name}")
    reasons = {name: rest.pop(name) for name in REASONING if name in rest}
    for name, reasoning in reasons.items():
        if not isinstance(reasoning, str):
            raise RowError("wrong-type", f"{place}: found {name} {shown(reasoning)}, expected text")
        if message.setdefault("reasoning_content", reasoning) != reasoning:
            raise RowError(
                "wrong-type", f"{place}: found different texts in {' and '.join(reasons)}, expected one of them"
            )
    # The weight that OpenAI's format for fine-tuning gives to answers.
    weight = rest.pop("weight", None)
    if weight is not None:
        if weight not in (0, 1):
            expected = "0 (not trained) or 1 (trained)"
            raise RowError("bad-weight", f"{place}: found weight {shown(weight)}, expected {expected}")
        message["weight"] = 1 if weight else 0


def _take_names(rest: dict[Any, Any], message: Message) -> None:
    """Move the names that templates may write from ``rest`` to the message."""
    if isinstance(rest.get("name"), str):
        message["name"] = rest.pop("name")
    if message["role"] == "tool" and isinstance(rest.get("tool_call_id"), str):
        message["tool_call_id"] = rest.pop("tool_call_id")


def _unknown_role(value: dict[Any, Any], tag: Any, place: str, dialect: Dialect, fields: Fields) -> RowError:
    layout = fields.layout
    if dialect.role not in value:
        other = layout.openai if dialect is layout.sharegpt else layout.sharegpt
        if other.role in value and layout.format == dialect.format:
            hint = f"use format {other.format}"
            if dialect is layout.sharegpt and "conversations" in fields.row:
                hint += " with columns.messages: conversations"
        elif other.role in value:
            hint = f"expected {{{dialect.role}, {dialect.content}}}, as in the other messages of the row"
        else:
            hint = f"expected {{{dialect.role}, {dialect.content}}}: set tags.role if another key has the role"
        return RowError("unknown-role", f"{place}: no {dialect.role!r}; found {keys_of(value)}: {hint}")
    expected = dialect.names("system", "user", "assistant", "tool")
    field = next((field for field, names in KNOWN_ROLES.items() if isinstance(tag, str) and tag.lower() in names), None)
    hint = f": set tags.{field} to {tag}" if field else ""
    return RowError("unknown-role", f"{place}: found role {shown(tag)}, expected {expected}{hint}")
