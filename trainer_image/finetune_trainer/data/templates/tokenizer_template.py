"""A chat template with its tokenizer: renders messages, and knows the tokens that split or end text.

`answer_spans` uses it to find answers in rendered text; `chat_template` adds the settings of the job. An instance is
plain data, so it can be sent to other processes.
"""

import re
from collections.abc import Iterable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError

from finetune_trainer.data.samples import Message, ToolSchema
from finetune_trainer.data.templates import named_templates, render, tool_calls, training_templates
from finetune_trainer.data.templates.render import Rendered
from finetune_trainer.errors import InvalidSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_ERRORS = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
    RecursionError,  # values that are nested more deeply than JSON can be written
)
"""What a template raises for messages that it does not support."""


class TemplateMismatch(Exception):
    """An answer cannot be trained, because of the row or because of the template. ``rule``: as in `RowError`."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class TokenizerTemplate:
    """See the module. Raises InvalidSpec for a tokenizer without a valid template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: frozenset[int], own: str | None = None) -> None:
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self.own = _default_template(tokenizer) if own is None else own
        """The template of inference."""
        self.marked, self.method = training_templates.find_variant(self.own)
        """The template that renders rows, and how trained tokens are found in its text."""
        for template in (self.own, self.marked):
            render.check_syntax(template)
        self.special_tokens = cast(dict[str, str], dict(tokenizer.special_tokens_map))
        added = tokenizer.added_tokens_decoder
        words = {i: added[i].content if i in added else str(tokenizer.decode([i])) for i in stop_ids}
        self.stop_pattern = _any_of(words.values())
        self.stop_names = ", ".join(repr(words[i]) for i in sorted(words)) or "none"
        # The text is split at these tokens whatever stands around them. Other tokens may depend on their neighbours.
        self.split_pattern = _any_of(
            token.content for token in added.values() if token.special and not (token.normalized or token.single_word)
        )
        self.prompt_end_ids: dict[str, list[int]] = {}
        """Cache of `tokenize`: the end of a prompt -> its token ids. Prompts have few different ends."""
        self._call_forms = {
            template: {
                empty: tool_calls.find_form(partial(self._write, template), "" if empty else "Hi")
                for empty in (True, False)
            }
            for template in (self.own, self.marked)
        }
        """Template -> whether the content is empty -> form of a message with calls."""
        self._opens_reasoning = self._prompt_opens_reasoning()

    @cached_property
    def templates_with_tools(self) -> str:
        """Names of templates to choose for rows with tools, for messages."""
        return named_templates.names_with_tools(self.tokenizer)

    def render(
        self, template: str, messages: list[Message], tools: list[ToolSchema], *, add_generation_prompt: bool
    ) -> Rendered:
        """Render with ``template``, `own` or `marked`. Raises TemplateMismatch for what it rejects or drops."""
        try:
            formed = [self._in_call_form(template, message) for message in messages]
            return render.render(
                template, formed, tools, self.special_tokens, add_generation_prompt=add_generation_prompt
            )
        except TEMPLATE_ERRORS as error:
            raise TemplateMismatch("template", f"the chat template rejects it: {error}") from None

    def render_inference_prompt(self, messages: list[Message], tools: list[ToolSchema]) -> str:
        """The prompt of inference, as text."""
        return self.render(self.own, messages, tools, add_generation_prompt=True).text

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text, which has its special tokens already."""
        tokenize: Any = self.tokenizer
        ids: list[int] = tokenize(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def last_tokens(self, text: str, *, count: int = 8) -> str:
        """The last tokens of a text, for messages."""
        return self._shown(self.ids(text)[-count:])

    def prompt_difference(self, prompt: str, row: str) -> str:
        """Where a row differs from the prompt of inference, in tokens, for messages."""
        return self.token_difference(self.ids(prompt), self.ids(row))

    def token_difference(self, prompt: list[int], row: list[int]) -> str:
        """As `prompt_difference`, of token ids."""
        first = next((i for i, pair in enumerate(zip(prompt, row, strict=False)) if pair[0] != pair[1]), len(row))
        return (
            "the row does not begin with the prompt of inference. They differ from token"
            f" {first} on, at inference: {self._shown(prompt[first : first + 4])}; in the row:"
            f" {self._shown(row[first : first + 4])}"
        )

    def with_reasoning(self, message: Message) -> Message:
        """The assistant's message with its reasoning in the field, or in the content, from which the template reads
        it."""
        plain: dict[str, Any] = dict(message)
        reasoning = plain.pop("reasoning_content", None)
        if "reasoning_content" in self.own or "thinking" in self.own:
            # As apply_chat_template does for gpt-oss, which reads the field by its older name.
            return cast(Message, {"thinking": reasoning, **message}) if reasoning else message
        if reasoning is None:
            return message
        return cast(Message, {**plain, "content": f"<think>\n{reasoning}\n</think>\n\n{message['content']}"})

    def with_empty_reasoning(self, message: Message) -> Message:
        """An answer that can follow the prompt: with empty reasoning if the prompt opens reasoning and the data has
        none. It has no second line break, because that would be joined with the line break at the prompt's end."""
        if not self._opens_reasoning or "reasoning_content" in self.own or "</think>" in message["content"]:
            return message
        return cast(Message, {**message, "content": f"<think>\n</think>\n\n{message['content']}"})

    def _in_call_form(self, template: str, message: Message) -> Message:
        if not message.get("tool_calls"):
            return message
        form = self._call_forms[template][tool_calls.has_no_content(message)]
        if form is None:
            name = message["tool_calls"][0]["function"]["name"]
            raise TemplateMismatch("tools", tool_calls.dropped_call_message(name, self.templates_with_tools))
        return form.apply(message)

    def _write(self, template: str, messages: list[Message]) -> str | None:
        """The text, or None if the template rejects the messages."""
        try:
            return render.render(template, messages, [], self.special_tokens, add_generation_prompt=False).text
        except TEMPLATE_ERRORS:
            return None

    def _prompt_opens_reasoning(self) -> bool:
        try:
            prompt = self.render_inference_prompt([{"role": "user", "content": "Hello"}], [])
        except TemplateMismatch:
            return False
        return prompt.rstrip().endswith("<think>")

    def _shown(self, ids: list[int]) -> str:
        return " ".join(repr(self.tokenizer.decode([i])) for i in ids) or "nothing"


def _default_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    named: Any = tokenizer.chat_template
    if not named:
        raise InvalidSpec(
            "model.source: its tokenizer has no chat template, so the format of conversations for this model is"
            " unknown. Choose a template with template.name, use the model's chat or instruct variant, or add a"
            " chat_template.jinja to the folder."
        )
    if isinstance(named, dict) and "default" not in named:
        raise InvalidSpec(
            f"model.source: its tokenizer has the chat templates {', '.join(sorted(named))}, and none is named default."
            " Choose a template with template.name, or save one of them as chat_template.jinja in the folder."
        )
    return str(named["default"] if isinstance(named, dict) else named)


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(set(words), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
