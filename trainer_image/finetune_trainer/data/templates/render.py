"""Runs a chat template.

Used by `turns`. The environment is that of transformers, so that a template does here exactly what it does in
``apply_chat_template``; compiled templates are kept by it. Only the date is another: a template that writes today's
(Llama 3.2's does) is given TODAY, or rows would differ from day to day. What is left out is what costs more than the
rendering: copies of messages that are plain data already, looking through jinja's globals anew for each row, and
following marks where a template has none.
"""

from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import TemplateSyntaxError
from transformers.utils import chat_template_utils

from finetune_trainer.data.samples import Message
from finetune_trainer.data.templates import marks
from finetune_trainer.errors import InvalidSpec

TODAY = date(2024, 7, 26)
"""What templates take for today: the date that Llama 3's write when they aren't told one."""


class Rendered(NamedTuple):
    """A text, and the stretches of it that the template marks as the assistant's."""

    text: str
    marked: list[tuple[int, int]]


def check(template: str) -> None:
    """Raises InvalidSpec if it is no template."""
    try:
        _compiled(template)
    except TemplateSyntaxError as error:
        raise InvalidSpec(f"model.source: its chat template has an error in line {error.lineno}: {error}") from None


def render(
    template: str, messages: list[Message], tools: list[dict[str, Any]], special: dict[str, str], *, ask: bool
) -> Rendered:
    """The conversation as text; with ``ask``, up to where the model's answer begins. Raises what templates raise."""
    compiled = _compiled(template)
    known = _globals(compiled) | special
    known["strftime_now"] = TODAY.strftime
    known |= {"messages": messages, "tools": tools or None, "documents": None, "add_generation_prompt": ask}
    # shared: what is known is taken as it is.
    written = compiled.root_render_func(compiled.new_context(known, shared=True))
    if not _is_marked(template):
        return Rendered("".join(written), [])
    blocks: list[str] = []
    marked: list[tuple[int, int]] = []
    with compiled.environment.activate_tracker(blocks, marked):
        for block in written:
            blocks.append(block)  # one by one: the tracker counts what is there when a mark is met
    return Rendered("".join(blocks), marked)


def _compiled(template: str) -> Any:
    return chat_template_utils._compile_jinja_template(template)


_is_marked = lru_cache(marks.is_marked)


@lru_cache
def _globals(compiled: Any) -> dict[str, Any]:
    return dict(compiled.globals)
