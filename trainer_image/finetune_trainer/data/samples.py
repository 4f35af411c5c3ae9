"""What a row of data means, whatever its format: the only form that chat templates and tokenization see.

`formats` creates samples, `tokenize` reads them.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Required, TypedDict

Role = Literal["system", "user", "assistant", "tool"]
ToolCall = dict[str, Any]
"""As OpenAI writes it; ``function.arguments`` is an object, not its JSON."""
ToolSchema = dict[str, Any]
"""A function that the model may call, as OpenAI writes it."""


class Message(TypedDict, total=False):
    """A message, as chat templates take it."""

    role: Required[Role]
    content: Required[str]
    reasoning_content: str
    """The reasoning before the answer, if the data has it in a field of its own."""
    weight: Literal[0, 1]
    """Role assistant: 0 if the data says that this answer is context and not trained."""
    tool_calls: list[ToolCall]
    tool_call_id: str
    """Role tool: the call that this message answers, if the data names it."""
    name: str
    """Role tool: the function that answers, if the data names it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Formats alpaca, sharegpt and openai. The last message is the assistant's."""

    messages: list[Message]
    tools: list[ToolSchema] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Document:
    """Format text."""

    text: str


@dataclass(frozen=True, slots=True)
class Preference:
    """Format preference: a prompt with a chosen and a rejected answer."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[ToolSchema] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """Format kto: a prompt, an answer, and whether the answer is desirable."""

    prompt: list[Message]
    answer: list[Message]
    desirable: bool
    tools: list[ToolSchema] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What stage ppo reads from a row of any format with prompts. The last message is not the assistant's."""

    messages: list[Message]
    tools: list[ToolSchema] = field(default_factory=list)


Sample = Conversation | Document | Preference | LabelledAnswer | Prompt


class RowError(Exception):
    """A row cannot be used. ``rule`` is the kind of mistake, by which the report counts; the message says what was
    found and what is allowed."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule

    def __reduce__(self) -> tuple[type["RowError"], tuple[str, str]]:
        return RowError, (self.rule, str(self))  # raised in worker processes, which pickle it
