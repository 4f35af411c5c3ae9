"""What of a conversation a chat template does not write.

Templates differ in what they write: most leave out the ids of calls, some leave out thoughts of earlier turns, names,
or whole system messages. Preparation counts it, so that the report says what training does not see.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from finetune_trainer.data.samples import Message, ToolSchema

SUFFIX = " (left out by the chat template)"
TEXTS = {
    "system": "system messages",
    "user": "user messages",
    "assistant": "answers",
    "tool": "tool messages",
}
"""Role -> what the text of its messages is called."""
ESCAPES = 2
"""How often JSON may be written inside JSON: arguments are JSON inside the JSON of a call."""
_THOUGHTS = re.compile(r"</?think>")


def left_out(messages: Sequence[Message], tools: Sequence[ToolSchema], texts: Sequence[str]) -> list[str]:
    """Names of what is in none of the rendered texts, sorted."""
    found: set[str] = set()
    for message in messages:
        content = message["content"]
        # Templates move thoughts that are in the content, so each piece is looked for.
        if not (_has(texts, content) or all(_has(texts, piece) for piece in _THOUGHTS.split(content))):
            found.add(TEXTS[message["role"]])
        if len(message) == 2:
            continue
        for key in ("reasoning_content", "name", "tool_call_id"):
            value: Any = message.get(key)
            if value and not _has(texts, value):
                found.add(key)
        for call in message.get("tool_calls") or []:
            if not _has(texts, call.get("id", "")):
                found.add("tool_calls[].id")
            if not _has_all(texts, call["function"]):
                found.add("tool_calls[].function")
    if not all(_has_all(texts, value) for tool in tools for key, value in tool.items() if key != "type"):
        found.add("parts of tools")
    return sorted(name + SUFFIX for name in found)


def _has(texts: Sequence[str], value: str) -> bool:
    if value in texts[0]:
        return True
    value = value.strip()
    for _ in range(ESCAPES + 1):
        if any(value in text for text in texts):
            return True
        escaped = json.dumps(value, ensure_ascii=False)[1:-1]
        if escaped == value:
            return False
        value = escaped
    return False


def _has_all(texts: Sequence[str], value: Any) -> bool:
    """Whether all texts inside a value are written."""
    if isinstance(value, str):
        return _has(texts, value)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return True
    for inner in value:  # noqa: SIM110 - a generator takes twice the time, for each value of each row
        if not _has_all(texts, inner):
            return False
    return True
