"""What a row of data means, whatever its format: the one shape that templates and tokenizing see.

Made by ``formats``, read by ``templates`` and ``tokenize``.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Required, TypedDict

Role = Literal["system", "user", "assistant", "tool"]


class Message(TypedDict, total=False):
    """One message, as chat templates take it."""

    role: Required[Role]
    content: Required[str]
    reasoning_content: str
    """What the model thought before it answered, where the data keeps it apart."""
    weight: Literal[0, 1]
    """Role assistant: 0, where the data says so, is an answer to go on from and not to learn."""
    tool_calls: list[dict[str, Any]]
    """As OpenAI writes them; ``function.arguments`` is an object, not its JSON."""
    tool_call_id: str
    """Role tool: which call this answers, where the data says so."""
    name: str
    """Role tool: which function answers, where the data says so."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Formats alpaca, sharegpt and openai. The last message is the assistant's."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Document:
    """Format text."""

    text: str


@dataclass(frozen=True, slots=True)
class Preference:
    """Format preference: two answers to one prompt, of which one is better."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Format kto: an answer, and whether it is wanted."""

    prompt: list[Message]
    answer: list[Message]
    desirable: bool
    tools: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What stage ppo takes of a row of any format with prompts. The last message is not the assistant's."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


Sample = Conversation | Document | Preference | Labelled | Prompt


class BadRow(Exception):
    """A row that can't be used. ``rule`` names the kind of mistake, as counted in the report; the message says what was
    found and what was expected."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule

    def __reduce__(self) -> tuple[type["BadRow"], tuple[str, str]]:
        return BadRow, (self.rule, str(self))  # made in worker processes, which pickle it
