"""The form in which a chat template writes a tool call, and whether it wrote the call.

Some templates write calls only if the content is null or missing, others only if it is text; some take arguments as an
object, others only as JSON. A template silently drops a call in a form that it does not support, and the model would
learn an empty answer.
"""

import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

from finetune_trainer.data.samples import Message, ToolCall

Content = Literal["text", "null", "missing"]
PROBE_NAME, PROBE_ARGUMENTS = "probed_call", {"probed_key": "probed value"}


class CallForm(NamedTuple):
    """The form of a message with calls."""

    content: Content = "text"
    """What replaces an empty content."""
    json_arguments: bool = False

    def apply(self, message: Message) -> Message:
        """The message in this form."""
        formed: dict[str, Any] = dict(message)
        if self.json_arguments:
            formed["tool_calls"] = [_with_json_arguments(call) for call in formed["tool_calls"]]
        if has_no_content(message) and self.content != "text":
            formed["content"] = None
            if self.content == "missing":
                del formed["content"]
        return cast(Message, formed)


def has_no_content(message: Message) -> bool:
    """Whether the message has no text besides its calls."""
    return not message["content"].strip()


def find_form(write: Callable[[list[Message]], str | None], content: str) -> CallForm | None:
    """The first form in which ``write`` writes a call beside ``content``. ``write`` returns None for messages that the
    template rejects. None: the template drops calls in every form. A template that rejects every form gets the default
    form, so that its own error is reported."""
    call = {"type": "function", "id": "probedid1", "function": {"name": PROBE_NAME, "arguments": PROBE_ARGUMENTS}}
    answer: Message = {"role": "assistant", "content": content, "tool_calls": [call]}
    contents: tuple[Content, ...] = ("text",) if content else ("text", "null", "missing")
    forms = [CallForm(content, json_arguments) for json_arguments in (False, True) for content in contents]
    texts = [write([{"role": "user", "content": "Hello"}, form.apply(answer)]) for form in forms]
    for form, text in zip(forms, texts, strict=True):
        if text is not None and PROBE_NAME in text and str(PROBE_ARGUMENTS) not in text:
            return form
    return CallForm() if texts == [None] * len(texts) else None


def dropped_call(message: Message, written: str) -> str | None:
    """The name of a call of the message that the template did not write; None if it wrote all."""
    names = (call["function"]["name"] for call in message.get("tool_calls") or [])
    return next((name for name in names if name not in written), None)


def dropped_call_message(name: str, templates: str) -> str:
    """The error message for a dropped call. ``templates``: names of templates that have a place for calls."""
    return (
        f"the chat template drops the call of {name!r}, so the model would learn not to make it: use a model for tools,"
        f" or template.name with a template that has a place for calls ({templates}), or remove the row"
    )


def _with_json_arguments(call: ToolCall) -> ToolCall:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
