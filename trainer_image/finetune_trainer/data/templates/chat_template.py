"""A chat template with the settings of the job: a conversation -> the texts that are trained.

Preparation calls `ChatTemplate.render_rows` through `tokenize`; ``generate`` calls `ChatTemplate.render_prompt`.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from finetune_api.data import TemplateSpec

from finetune_trainer.data.samples import Message, RowError, ToolSchema
from finetune_trainer.data.templates import render
from finetune_trainer.data.templates.answer_spans import Answer, render_all_answers, render_answer
from finetune_trainer.data.templates.left_out import left_out
from finetune_trainer.data.templates.tokenizer_template import TemplateMismatch, TokenizerTemplate
from finetune_trainer.errors import InvalidSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]
"""A conversation that every template supports: if it cannot be trained, the template is at fault."""


TOOL_USE = "tool_use"
"""Name of the template for conversations with tools, if a tokenizer has several templates."""
DIFFERENT = ("mask", "digest", "maskDigest")
"""Facts in which that template differs from the default template."""


@dataclass(frozen=True, slots=True)
class RenderedRow:
    """A row before it is tokenized."""

    text: str
    answers: list[Answer]
    prompts_checked: bool = True
    """Whether the prompts' tokens must be those of inference."""
    train_all: bool = False
    """Whether all tokens are trained, not only the answers."""


class ChatTemplate(TokenizerTemplate):
    """See the module."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        stop_ids: frozenset[int],
        settings: TemplateSpec,
        own: str | None = None,
    ) -> None:
        """``own``: the template of inference, if it is not the default template of the tokenizer."""
        super().__init__(tokenizer, stop_ids, own)
        self.settings = settings
        named: Any = tokenizer.chat_template
        self.with_tools: ChatTemplate | None = None
        """The template for conversations with tools, if the tokenizer has several templates. transformers and servers
        choose in the same way."""
        if own is None and isinstance(named, dict) and TOOL_USE in named:
            self.with_tools = ChatTemplate(tokenizer, stop_ids, settings, str(named[TOOL_USE]))
        self._check_default_system()

    def render_prompt(self, messages: list[Message], tools: list[ToolSchema] | None = None) -> str:
        """The prompt of inference for a conversation. Raises TemplateMismatch."""
        if tools and self.with_tools:
            return self.with_tools.render_prompt(messages, tools)
        return self.render_inference_prompt(self._complete(messages), tools or [])

    def render_rows(
        self, messages: list[Message], tools: list[ToolSchema], *, since: int = 0, split: bool = True
    ) -> list[RenderedRow]:
        """The rows of a conversation. Turns before message ``since`` are not trained, nor turns of weight 0. A
        conversation that cannot be a single row becomes several; without ``split`` it stays a single row, with the last
        answer only. Raises TemplateMismatch and RowError."""
        if tools and self.with_tools:
            return self.with_tools.render_rows(messages, tools, since=since, split=split)
        self._check_tools(messages, tools)
        complete = self._complete(messages)
        added = len(complete) - len(messages)
        trained = [i + added for i, message in enumerate(messages) if i >= since and _is_trained(message)]
        if not trained:
            message = "the conversation has no answer of the assistant with a weight other than 0: nothing is trained"
            raise RowError("noAnswer", message)
        if self.settings.mask_history:
            trained = trained[-1:]
        train_all = self.settings.train_on_prompt and split
        try:
            rows = [render_answer(self, complete, index, tools) for index in trained]
        except TemplateMismatch:
            if self.settings.history != "asRendered" or not split:
                raise
            return [RenderedRow(*render_all_answers(self, complete, trained, tools), False, train_all)]
        text, last = rows[-1]
        if all(text.startswith(earlier[: answer.end]) for earlier, answer in rows[:-1]):
            return [RenderedRow(text, [answer for _, answer in rows], train_all=train_all)]
        if self.settings.history == "asRendered" and split:
            return [RenderedRow(*render_all_answers(self, complete, trained, tools), False, train_all)]
        if self.settings.history == "lastTurn" or not split:
            return [RenderedRow(text, [last], train_all=train_all)]
        return [RenderedRow(row, [answer], train_all=train_all) for row, answer in rows]

    def render_prompt_row(self, messages: list[Message], tools: list[ToolSchema]) -> RenderedRow:
        """A row without trained tokens: the prompt of inference. Raises TemplateMismatch and RowError."""
        (self.with_tools if tools and self.with_tools else self)._check_tools(messages, tools)
        return RenderedRow(self.render_prompt(messages, tools), [])

    def facts(self) -> dict[str, Any]:
        """The facts that decide the rows, for provenance and for the key of prepared data."""
        own, marked = (hashlib.sha256(text.encode()).hexdigest() for text in (self.own, self.marked))
        with_tools = self.with_tools.facts() if self.with_tools else None
        return {
            "name": self.settings.name or "tokenizer",
            "history": self.settings.history,
            "mask": self.method,
            "digest": f"sha256:{own}",
            "maskDigest": f"sha256:{marked}",
            "date": render.TODAY.isoformat(),
            "stopIds": sorted(self.stop_ids),
            "defaultSystem": self.settings.default_system,
            "trainOnPrompt": self.settings.train_on_prompt,
            "maskHistory": self.settings.mask_history,
            **({"withTools": {key: with_tools[key] for key in DIFFERENT}} if with_tools else {}),
        }

    def _check_tools(self, messages: list[Message], tools: list[ToolSchema]) -> None:
        """A template without support for tools drops them silently."""
        for used, word in ((bool(tools), "tools"), (any(m.get("tool_calls") for m in messages), "tool_calls")):
            if used and word not in self.own:
                raise RowError(
                    "tools",
                    f"the row has {word}, which the chat template does not support: use a model for tools, or"
                    " template.name with a template that has a place for them"
                    f" ({self.templates_with_tools}), or remove them",
                )

    def _check_default_system(self) -> None:
        """A template may refuse a system message, or leave it out. Raises InvalidSpec."""
        system = self.settings.default_system
        if not system or not system.strip():
            return
        advice = "Remove template.defaultSystem, or choose a template with a system message (template.name)"
        try:
            self.render_inference_prompt(PROBE[:1], [])
        except TemplateMismatch:
            return  # the template is at fault, whatever the system message is
        try:
            text = self.render_inference_prompt(self._complete(PROBE[:1]), [])
        except TemplateMismatch as error:
            raise InvalidSpec(f"template.defaultSystem: {error}. {advice}") from None
        if left_out([{"role": "system", "content": system}], [], [text]):
            raise InvalidSpec(f"template.defaultSystem: the chat template leaves system messages out. {advice}")

    def _complete(self, messages: list[Message]) -> list[Message]:
        """With the default system prompt, and with reasoning in the field from which the template reads it."""
        if self.settings.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.settings.default_system}, *messages]
        return [
            self.with_reasoning(_without_weight(message)) if message["role"] == "assistant" else message
            for message in messages
        ]


def _is_trained(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def _without_weight(message: Message) -> Message:
    """The message as at inference."""
    return cast(Message, {k: v for k, v in message.items() if k != "weight"}) if "weight" in message else message
