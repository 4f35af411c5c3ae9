"""A tokenizer's chat template with the settings of the job: a conversation -> the texts that are trained.

Made once by whoever prepares data or asks a model; `tokenize` calls `drafts`, ``generate`` calls `ask`. Plain data, so
it goes to other processes as it is.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from finetune_api.data import TemplateSpec
from jinja2 import TemplateError

from finetune_trainer.data.samples import BadRow, Message
from finetune_trainer.data.templates import calls, marks
from finetune_trainer.data.templates import render as rendering
from finetune_trainer.data.templates.render import Rendered
from finetune_trainer.data.templates.turns import Answer, Misfit, alone, as_rendered
from finetune_trainer.errors import InvalidSpec

PROBE: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]
"""A conversation that every template can write: what fails here is the template's fault."""
BROKEN = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError)
"""What a template raises when it is given what it wasn't written for."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A row before it is tokenized."""

    text: str
    answers: list[Answer]
    gated: bool = True
    """Whether the prompts' tokens must be those of inference."""
    everything: bool = False
    """Whether all of it is trained."""


class Template:
    """How conversations look to the model, and which of their tokens are trained."""

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int], spec: TemplateSpec) -> None:
        if not tokenizer.chat_template:
            raise InvalidSpec(
                "model.source: its tokenizer has no chat template, so how a conversation looks to this model is not"
                " known. Choose one by template.name, use the model's chat or instruct variant, or add a"
                " chat_template.jinja to the folder."
            )
        self.tokenizer, self.stop_ids, self.spec = tokenizer, stop_ids, spec
        self.own: str = tokenizer.get_chat_template()
        self.marked, self.method = marks.find(self.own)
        for source in (self.own, self.marked):
            rendering.check(source)
        self.constants: dict[str, str] = dict(tokenizer.special_tokens_map)
        added = tokenizer.added_tokens_decoder
        words = {i: added[i].content if i in added else tokenizer.decode([i]) for i in stop_ids}
        self.stops = _any_of(words.values())
        self.stop_names = ", ".join(repr(words[i]) for i in sorted(words)) or "none"
        # Where these stand, the text is split whatever is around them. Others may depend on their neighbours.
        self.special = _any_of(t.content for t in added.values() if t.special and not (t.normalized or t.single_word))
        self.tails: dict[str, list[int]] = {}
        """Token ids of the ends of prompts, which are few: kept by `tokenize`."""
        self._shapes = {
            source: {pure: calls.find(partial(self._written, source), "" if pure else "Hi") for pure in (True, False)}
            for source in (self.own, self.marked)
        }
        """How each wants a message with calls, without a content and with one."""
        self._thinks = self._opens_thought()

    def render(self, source: str, messages: list[Message], tools: list[dict[str, Any]], *, ask: bool) -> Rendered:
        """Raises Misfit for what the template refuses or leaves out."""
        try:
            messages = [self._shaped(source, message) for message in messages]
            return rendering.render(source, messages, tools, self.constants, ask=ask)
        except BROKEN as error:
            raise Misfit("template", f"the chat template refuses it: {error}") from None

    def ask(self, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
        """The prompt as inference has it."""
        return self.render(self.own, self._complete(messages), tools or [], ask=True).text

    def drafts(
        self, messages: list[Message], tools: list[dict[str, Any]], *, since: int = 0, split: bool = True
    ) -> list[Draft]:
        """The rows of a conversation. Turns before message ``since`` aren't trained, nor are those of weight 0; without
        ``split`` it stays one row, which where it must be split has the last answer only. Raises Misfit and BadRow."""
        self._check_tools(messages, tools)
        complete = self._complete(messages)
        added = len(complete) - len(messages)
        turns = [i + added for i, message in enumerate(messages) if i >= since and _is_trained(message)]
        if not turns:
            found = "the conversation has no answer of the assistant, or none whose weight isn't 0: nothing is to train"
            raise BadRow("noAnswer", found)
        if self.spec.mask_history:
            turns = turns[-1:]
        everything = self.spec.train_on_prompt and split
        try:
            rows = [alone(self, complete, index, tools) for index in turns]
        except Misfit:
            if self.spec.history != "asRendered" or not split:
                raise
            return [Draft(*as_rendered(self, complete, turns, tools), False, everything)]
        text, last = rows[-1]
        if all(text.startswith(earlier[: answer.end]) for earlier, answer in rows[:-1]):
            return [Draft(text, [answer for _, answer in rows], everything=everything)]
        if self.spec.history == "asRendered" and split:
            return [Draft(*as_rendered(self, complete, turns, tools), False, everything)]
        if self.spec.history == "lastTurn" or not split:
            return [Draft(text, [last], everything=everything)]
        return [Draft(row, [answer], everything=everything) for row, answer in rows]

    def prompt(self, messages: list[Message], tools: list[dict[str, Any]]) -> Draft:
        """A row of which nothing is trained: what inference has it answer. Raises Misfit and BadRow."""
        self._check_tools(messages, tools)
        return Draft(self.ask(messages, tools), [])

    def facts(self) -> dict[str, Any]:
        """For provenance and for the key of prepared data."""
        own, marked = (hashlib.sha256(text.encode()).hexdigest() for text in (self.own, self.marked))
        return {
            "name": self.spec.name or "tokenizer",
            "history": self.spec.history,
            "mask": self.method,
            "digest": f"sha256:{own}",
            "maskDigest": f"sha256:{marked}",
            "date": rendering.TODAY.isoformat(),
            "stopIds": sorted(self.stop_ids),
            "defaultSystem": self.spec.default_system,
            "trainOnPrompt": self.spec.train_on_prompt,
            "maskHistory": self.spec.mask_history,
        }

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text, which already has its special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def tokens(self, text: str, *, last: int = 8) -> str:
        """The last tokens of a text, for people."""
        return " ".join(repr(self.tokenizer.decode([i])) for i in self.ids(text)[-last:]) or "nothing"

    def difference(self, prompt: str, row: str) -> str:
        """Where a row leaves the prompt of inference, in tokens, for people."""
        return self.token_difference(self.ids(prompt), self.ids(row))

    def token_difference(self, prompt: list[int], row: list[int]) -> str:
        at = next((i for i, pair in enumerate(zip(prompt, row, strict=False)) if pair[0] != pair[1]), len(row))
        shown = [
            " ".join(repr(self.tokenizer.decode([i])) for i in ids[at : at + 4]) or "nothing" for ids in (prompt, row)
        ]
        return (
            f"the prompt at inference is not how the row begins. From token {at} on, at inference: {shown[0]}; in the"
            f" row: {shown[1]}"
        )

    def _check_tools(self, messages: list[Message], tools: list[dict[str, Any]]) -> None:
        """A template that doesn't know tools leaves them out without a word."""
        for given, word in ((bool(tools), "tools"), (any(m.get("tool_calls") for m in messages), "tool_calls")):
            if given and word not in self.own:
                raise BadRow(
                    "tools",
                    f"the row has {word}, and the chat template has no place for them: use a model or a template"
                    " (template.name) made for tools, or leave them out",
                )

    def _complete(self, messages: list[Message]) -> list[Message]:
        """With the default system prompt, and with reasoning where this template looks for it."""
        if self.spec.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.spec.default_system}, *messages]
        return [self._reasoned(_plain(message)) if message["role"] == "assistant" else message for message in messages]

    def _shaped(self, source: str, message: Message) -> Message:
        if not message.get("tool_calls"):
            return message
        shape = self._shapes[source][calls.is_pure(message)]
        if shape is None:
            raise Misfit("tools", calls.left_out(message["tool_calls"][0]["function"]["name"]))
        return shape.apply(message)

    def _reasoned(self, message: Message) -> Message:
        plain: dict[str, Any] = dict(message)
        reasoning = plain.pop("reasoning_content", None)
        if "reasoning_content" in self.own or "thinking" in self.own:
            # As apply_chat_template does for gpt-oss, which reads it by its older name.
            return cast(Message, {"thinking": reasoning, **message}) if reasoning else message
        if reasoning is None:
            return message
        return cast(Message, {**plain, "content": f"<think>\n{reasoning}\n</think>\n\n{message['content']}"})

    def answered(self, message: Message) -> Message:
        """An answer that can follow the prompt: with an empty thought where the prompt opens one and the data has
        none. It has no second line break, which would join with the one that the prompt ends with."""
        if not self._thinks or "reasoning_content" in self.own or "</think>" in message["content"]:
            return message
        return cast(Message, {**message, "content": f"<think>\n</think>\n\n{message['content']}"})

    def _written(self, source: str, messages: list[Message]) -> str | None:
        """The text, or None for what the template refuses."""
        try:
            return rendering.render(source, messages, [], self.constants, ask=False).text
        except BROKEN:
            return None

    def _opens_thought(self) -> bool:
        """Whether prompts end inside a thought."""
        try:
            return self.render(self.own, PROBE[:1], [], ask=True).text.rstrip().endswith("<think>")
        except Misfit:
            return False


def _is_trained(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def _plain(message: Message) -> Message:
    """As inference has it."""
    return cast(Message, {k: v for k, v in message.items() if k != "weight"}) if "weight" in message else message


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(set(words), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
