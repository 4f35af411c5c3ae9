"""Messages of a row: read by the names that a format gives their parts, and checked for who speaks when.

Used by every format with messages. Roles end as those of chat templates: system, user, assistant, tool.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from finetune_api.data import TagsSpec

from finetune_trainer.data.formats.tools import calls, spoken_calls
from finetune_trainer.data.formats.values import either, shown
from finetune_trainer.data.samples import BadRow, Message, Role


@dataclass(frozen=True)
class Dialect:
    """What a format calls the parts of a message."""

    role: str
    content: str
    user: str
    assistant: str
    system: str
    tool: str
    function: str | None = None
    """Role of an assistant's message that is a tool call; None where messages have tool_calls."""

    @cached_property
    def roles(self) -> dict[str, Role]:
        """Name -> role."""
        roles: dict[str, Role] = {self.system: "system", self.user: "user", self.assistant: "assistant"}
        roles[self.tool] = "tool"
        if self.function:
            roles[self.function] = "assistant"
        return roles

    def names(self, *roles: Role) -> str:
        """What roles are called, for messages."""
        return either([name for name, role in self.roles.items() if role in roles])


class Turn(NamedTuple):
    """A message, and what its role is called in the data."""

    tag: str
    message: Message


def openai_dialect(tags: TagsSpec) -> Dialect:
    """Names of format openai."""
    return Dialect(
        role=tags.role or "role",
        content=tags.content or "content",
        user=tags.user or "user",
        assistant=tags.assistant or "assistant",
        system=tags.system or "system",
        tool=tags.observation or "tool",
    )


def sharegpt_dialect(tags: TagsSpec) -> Dialect:
    """Names of format sharegpt."""
    return Dialect(
        role=tags.role or "from",
        content=tags.content or "value",
        user=tags.user or "human",
        assistant=tags.assistant or "gpt",
        system=tags.system or "system",
        tool=tags.observation or "observation",
        function=tags.function or "function_call",
    )


def read(messages: list[Any], dialect: Dialect) -> list[Turn]:
    """The messages one by one; their order is not looked at. Consecutive observations of sharegpt, which has no way to
    say which call each answers, become one."""
    turns: list[Turn] = []
    for number, value in enumerate(messages, start=1):
        turn = _turn(value, f"message {number}", dialect)
        if dialect.function and turns and turn.message["role"] == turns[-1].message["role"] == "tool":
            turns[-1].message["content"] += "\n" + turn.message["content"]
        else:
            turns.append(turn)
    return turns


def conversation(turns: Sequence[Turn], dialect: Dialect, system: str = "") -> list[Message]:
    """The messages in an order that can be learnt: an optional system message, then user and assistant in turns, with
    tools in the user's place; the last is the assistant's. ``system`` counts where the messages have none."""
    messages = _in_order(turns, dialect, system)
    last = turns[-1] if turns else None
    if last is None or last.message["role"] != "assistant":
        found = f"a last message of role {last.tag!r}" if last else "no message"
        raise BadRow("no-answer", f"found {found}, expected {dialect.names('assistant')}: what is learnt")
    return messages


def asked(turns: Sequence[Turn], dialect: Dialect, system: str = "") -> list[Message]:
    """The same up to what the assistant is asked last, whether or not its answer follows."""
    messages = _in_order(turns, dialect, system)
    if messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise BadRow("no-prompt", f"found no message of role {dialect.names('user')}, expected what is asked")
    return messages


def _in_order(turns: Sequence[Turn], dialect: Dialect, system: str) -> list[Message]:
    start = 1 if turns and turns[0].message["role"] == "system" else 0
    allowed: tuple[Role, ...] = ("user",)
    for number, (tag, message) in enumerate(turns[start:], start=start + 1):
        role = message["role"]
        if role == "system":
            found = f"message {number}: found role {tag!r}, expected it in the first place only"
            raise BadRow("wrong-role-order", found)
        if role not in allowed:
            raise BadRow(
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


def _turn(value: Any, where: str, dialect: Dialect) -> Turn:
    if not isinstance(value, dict):
        raise BadRow("wrong-type", f"{where}: found {shown(value)}, expected {{{dialect.role}, {dialect.content}}}")
    tag, content = value.get(dialect.role), value.get(dialect.content)
    if not isinstance(tag, str) or tag not in dialect.roles:
        expected = dialect.names("system", "user", "assistant", "tool")
        raise BadRow("unknown-role", f"{where}: found role {shown(tag)}, expected {expected}")
    role = dialect.roles[tag]
    if tag == dialect.function:
        call: Message = {"role": role, "content": "", "tool_calls": spoken_calls(content, where)}
        return Turn(tag, _weighed(call, value, where))
    called = value.get("tool_calls") if role == "assistant" and not dialect.function else None
    if content is None and called:
        content = ""
    if not isinstance(content, str):
        raise BadRow("wrong-type", f"{where}: found {dialect.content} {shown(content)}, expected text")
    if not content.strip() and role in ("user", "assistant") and not called:
        raise BadRow("empty-text", f"{where}: found empty {dialect.content}, expected text")
    message: Message = {"role": role, "content": content}
    if called:
        message["tool_calls"] = calls(called, f"{where}: tool_calls")
    if role == "assistant" and (thoughts := value.get("reasoning_content")) is not None:
        if not isinstance(thoughts, str):
            raise BadRow("wrong-type", f"{where}: found reasoning_content {shown(thoughts)}, expected text")
        message["reasoning_content"] = thoughts
    if role == "tool":
        if isinstance(value.get("tool_call_id"), str):
            message["tool_call_id"] = value["tool_call_id"]
        if isinstance(value.get("name"), str):
            message["name"] = value["name"]
    return Turn(tag, _weighed(message, value, where))


def _weighed(message: Message, value: dict[str, Any], where: str) -> Message:
    """With the weight that OpenAI's format for fine-tuning gives answers."""
    weight = value.get("weight")
    if message["role"] != "assistant" or weight is None:
        return message
    if weight not in (0, 1):
        raise BadRow("bad-weight", f"{where}: found weight {shown(weight)}, expected 0 (not trained) or 1 (trained)")
    message["weight"] = 1 if weight else 0
    return message
