"""In which shape a chat template writes a tool call, and whether it wrote it.

Used by `template` and `turns`. Some templates write calls only where the content is null or missing, others only where
it is text; some take arguments as an object, others only as its JSON. What doesn't suit them they leave out without a
word, and the model would learn to answer nothing.
"""

import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

from finetune_trainer.data.samples import Message

Content = Literal["text", "null", "missing"]
NAME, ARGUMENTS = "probed_call", {"probed_key": "probed value"}


class Shape(NamedTuple):
    """Of a message with calls."""

    content: Content = "text"
    """Instead of an empty one."""
    json_arguments: bool = False

    def apply(self, message: Message) -> Message:
        """The same message as this."""
        shaped: dict[str, Any] = dict(message)
        if self.json_arguments:
            shaped["tool_calls"] = [_in_json(call) for call in shaped["tool_calls"]]
        if is_pure(message) and self.content != "text":
            shaped["content"] = None
            if self.content == "missing":
                del shaped["content"]
        return cast(Message, shaped)


def is_pure(message: Message) -> bool:
    """Whether it says nothing beside its calls."""
    return not message["content"].strip()


def find(write: Callable[[list[Message]], str | None], content: str) -> Shape | None:
    """The first shape in which ``write``, which gives None for what the template refuses, writes a call beside
    ``content``; None where it leaves calls out in every shape. What refuses them all is given the plain one, and says
    itself why."""
    call = {"type": "function", "id": "probedid1", "function": {"name": NAME, "arguments": ARGUMENTS}}
    answer: Message = {"role": "assistant", "content": content, "tool_calls": [call]}
    kinds: tuple[Content, ...] = ("text",) if content else ("text", "null", "missing")
    shapes = [Shape(kind, json_arguments) for json_arguments in (False, True) for kind in kinds]
    texts = [write([{"role": "user", "content": "Hello"}, shape.apply(answer)]) for shape in shapes]
    for shape, text in zip(shapes, texts, strict=True):
        if text is not None and NAME in text and str(ARGUMENTS) not in text:
            return shape
    return Shape() if texts == [None] * len(texts) else None


def missing(message: Message, written: str) -> str | None:
    """The name of a call that isn't in what the template made of the message."""
    names = (call["function"]["name"] for call in message.get("tool_calls") or [])
    return next((name for name in names if name not in written), None)


def left_out(name: str) -> str:
    """For people."""
    return (
        f"the chat template leaves out the call of {name!r}, so the model would learn not to make it: use a model or a"
        " template (template.name) made for tools, or leave the row out"
    )


def _in_json(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
