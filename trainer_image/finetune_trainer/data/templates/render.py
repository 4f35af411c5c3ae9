"""Runs a chat template.

Used by `turns`. The environment is that of transformers, so that a template does here exactly what it does in
``apply_chat_template``; compiled templates are kept by it. What is left out is what costs more than the rendering:
copies of messages that are plain data already.
"""

from typing import Any, NamedTuple

from jinja2 import TemplateSyntaxError
from transformers.utils import chat_template_utils

from finetune_trainer.data.samples import Message
from finetune_trainer.errors import InvalidSpec


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
    blocks: list[str] = []
    marked: list[tuple[int, int]] = []
    compiled = _compiled(template)
    with compiled.environment.activate_tracker(blocks, marked):
        for block in compiled.generate(
            messages=messages, tools=tools or None, documents=None, add_generation_prompt=ask, **special
        ):
            blocks.append(block)
    return Rendered("".join(blocks), marked)


def _compiled(template: str) -> Any:
    return chat_template_utils._compile_jinja_template(template)
