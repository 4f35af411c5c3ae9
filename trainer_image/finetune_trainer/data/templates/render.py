"""Runs a chat template.

The environment is that of transformers, which also caches compiled templates, so a template renders here as in
``apply_chat_template``. Only the date differs: a template that writes today's date (as Llama 3.2's does) gets TODAY,
because rows would change from day to day otherwise. Expensive steps of ``apply_chat_template`` that change nothing are
left out: copying messages that are plain data already, collecting jinja's globals for each row, and tracking marks in a
template without marks.
"""

from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import Template as CompiledTemplate
from jinja2 import TemplateSyntaxError, nodes
from transformers.utils import chat_template_utils

from finetune_trainer.data.samples import Message, ToolSchema
from finetune_trainer.data.templates import training_templates
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.runtime import bounds

OTHER_TEMPLATE = "Fix chat_template.jinja in the model's folder, or use another template with template.name"
TODAY = date(2024, 7, 26)
"""The date for templates: the default of Llama 3's templates."""


class Rendered(NamedTuple):
    """A text, and the spans of it that the template marks as the assistant's."""

    text: str
    marked: list[tuple[int, int]]


def check_syntax(template: str) -> None:
    """Raises InvalidSpec if the template cannot be compiled."""
    try:
        # Not compiled yet: the compiler computes what is constant, a power too.
        if powers := _compiled("").environment.parse(template).find(nodes.Pow):
            raise InvalidSpec(
                f"model.source: its chat template computes a power (**) in line {powers.lineno}, which may never end."
                f" {OTHER_TEMPLATE}"
            )
        with bounds.bounded("compiling the chat template"):
            _compiled(template)
    except TemplateSyntaxError as error:
        raise InvalidSpec(
            f"model.source: its chat template has an error in line {error.lineno}: {error}. {OTHER_TEMPLATE}"
        ) from None
    except (RecursionError, MemoryError, OverflowError, SyntaxError, ValueError, bounds.TooMuch) as error:
        raise InvalidSpec(f"model.source: its chat template can't be compiled: {error}. {OTHER_TEMPLATE}") from None


def render(
    template: str,
    messages: list[Message],
    tools: list[ToolSchema],
    special_tokens: dict[str, str],
    *,
    add_generation_prompt: bool,
) -> Rendered:
    """The conversation as text; with ``add_generation_prompt`` up to where the model's answer begins. Raises what the
    template raises."""
    compiled: Any = _compiled(template)
    variables = _globals(compiled) | special_tokens
    variables["strftime_now"] = TODAY.strftime
    variables |= {
        "messages": messages,
        "tools": tools or None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    # shared: the variables are not copied.
    try:
        with bounds.bounded("the chat template"):
            return _written(template, compiled, variables)
    except bounds.TooMuch as error:
        raise InvalidSpec(f"model.source: {error} for a single row. {OTHER_TEMPLATE}") from None


def _written(template: str, compiled: Any, variables: dict[str, Any]) -> Rendered:
    written = compiled.root_render_func(compiled.new_context(variables, shared=True))
    if not _is_marked(template):
        return Rendered("".join(written), [])
    blocks: list[str] = []
    marked: list[tuple[int, int]] = []
    with compiled.environment.activate_tracker(blocks, marked):
        for block in written:
            blocks.append(block)  # one at a time: the tracker measures the blocks when it meets a mark
    return Rendered("".join(blocks), marked)


def _compiled(template: str) -> CompiledTemplate:
    compiled: CompiledTemplate = chat_template_utils._compile_jinja_template(template)
    return compiled


_is_marked = lru_cache(training_templates.is_marked)


@lru_cache
def _globals(compiled: CompiledTemplate) -> dict[str, Any]:
    return dict(compiled.globals)
