"""How the rows of a data set are written: their format, the names of columns, and the names inside messages.

A layout is made once for many rows.
"""

from dataclasses import dataclass
from functools import cached_property

from finetune_api.data import ColumnsSpec, TagsSpec

from finetune_trainer.data.samples import Role


@dataclass(frozen=True)
class Dialect:
    """The names that a format gives to the keys of a message and to its roles."""

    format: str
    role: str
    content: str
    user: str
    assistant: str
    system: str
    tool: str
    function: str | None = None
    """Role of an assistant's message that is a tool call; None if messages have tool_calls."""
    others: tuple[tuple[str, Role], ...] = ()
    """Further names of roles."""

    @cached_property
    def roles(self) -> dict[str, Role]:
        """Name in the format -> role."""
        roles: dict[str, Role] = {self.system: "system", self.user: "user", self.assistant: "assistant"}
        roles[self.tool] = "tool"
        if self.function:
            roles[self.function] = "assistant"
        return roles | {name: role for name, role in self.others if name not in roles}

    def names(self, *roles: Role) -> str:
        """The format's names of some roles, for messages."""
        own = (self.system, self.user, self.assistant, self.tool, self.function)
        return either([name for name in dict.fromkeys(own) if name and self.roles[name] in roles])


class Layout:
    """See the module."""

    def __init__(self, format: str, columns: ColumnsSpec | None = None, tags: TagsSpec | None = None) -> None:
        self.format, self.columns = format, columns or ColumnsSpec()
        self.named: frozenset[str] = frozenset(self.columns.to_dict().values())
        """Columns that the job names. None of them is read as something else by default."""
        tags = tags or TagsSpec()
        self.openai = Dialect(
            format="openai",
            role=tags.role or "role",
            content=tags.content or "content",
            user=tags.user or "user",
            assistant=tags.assistant or "assistant",
            system=tags.system or "system",
            tool=tags.observation or "tool",
            # Newer and older names of OpenAI's API.
            others=(("developer", "system"), ("function", "tool")),
        )
        self.sharegpt = Dialect(
            format="sharegpt",
            role=tags.role or "from",
            content=tags.content or "value",
            user=tags.user or "human",
            assistant=tags.assistant or "gpt",
            system=tags.system or "system",
            tool=tags.observation or "observation",
            function=tags.function or "function_call",
        )


def either(names: list[str]) -> str:
    """'a', 'b' or 'c'."""
    quoted = [repr(name) for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]
