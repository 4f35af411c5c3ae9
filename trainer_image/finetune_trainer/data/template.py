"""Conversations -> text and token ids by the tokenizer's own chat template, and the gate that keeps both honest.

Called by `tokenize` and by ``generate``. Training must show the model exactly what it will see when it is asked: for
every trained turn the inference prompt is the row up to the turn's first trained token, and the turn ends with a token
that stops generation. `turns` checks this for each row and refuses what doesn't hold.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2 import TemplateError

from finetune_trainer.data.formats import BadRow, Conversation
from finetune_trainer.errors import InvalidSpec


class Span(NamedTuple):
    """Trained tokens of one assistant turn: ids[start:end]."""

    start: int
    end: int


@dataclass(frozen=True)
class Template:
    """A tokenizer with its chat template, and the tokens at which generation stops."""

    tokenizer: Any
    stop_ids: frozenset[int]

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise InvalidSpec(
                "model.source: its tokenizer has no chat template, so how a conversation looks to this model is not"
                " known. Use the model's chat or instruct variant, or add a chat_template.jinja to the folder."
            )

    def render(self, messages: Conversation, *, ask: bool) -> str:
        """The conversation as text; with ``ask``, up to where the model's answer begins."""
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        return text

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text, which already has its special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def row(self, messages: Conversation) -> tuple[list[int], list[Span]]:
        """Token ids of a conversation, and which of them are trained: every assistant turn with its stop token.

        Raises BadRow when this row can't be rendered, InvalidSpec when the template itself is not fit for training.
        """
        try:
            text = self.render(messages, ask=False)
            ids = self.ids(text)
            return ids, list(self._spans(messages, text, ids))
        except TemplateError as error:
            raise BadRow(f"the model's chat template refuses it: {error}") from None

    def _spans(self, messages: Conversation, text: str, ids: list[int]) -> Iterator[Span]:
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt_text = self.render(messages[:index], ask=True)
            prompt = self.ids(prompt_text)
            if ids[: len(prompt)] != prompt:
                if text.startswith(prompt_text) and message["content"][:1].isspace():
                    raise BadRow(
                        f"message {index + 1}: the answer begins with white space, which this tokenizer joins with"
                        " the end of the prompt, so the model could never answer so; remove it"
                    )
                raise self._unfit(index, "the prompt at inference is not how the row begins", prompt, ids)
            last = index == len(messages) - 1
            through = ids if last else self.ids(self.render(messages[: index + 1], ask=False))
            end = self._end(through, len(prompt))
            if end is None:
                stops = ", ".join(repr(self.tokenizer.decode([i])) for i in sorted(self.stop_ids)) or "none"
                raise InvalidSpec(
                    "model.source: its chat template doesn't end an answer with a token that stops generation, so the"
                    f" model would never learn to stop. The answer ends with {self._tokens(through[-4:])}; stop tokens"
                    f" (eos_token of the tokenizer, eos_token_id in generation_config.json) are: {stops}. Use the"
                    " model's chat or instruct variant."
                )
            if through[:end] != ids[:end]:
                raise self._unfit(index, "an answer looks different once the conversation goes on", through[:end], ids)
            yield Span(len(prompt), end)

    def _end(self, through: list[int], start: int) -> int | None:
        """Past the turn's stop token. Templates may put more after it (a line break), which inference never sees."""
        last = range(len(through) - 1, start - 1, -1)
        return next((position + 1 for position in last if through[position] in self.stop_ids), None)

    def _unfit(self, index: int, what: str, expected: list[int], ids: list[int]) -> InvalidSpec:
        at = next((i for i, pair in enumerate(zip(expected, ids, strict=False)) if pair[0] != pair[1]), len(ids))
        return InvalidSpec(
            f"model.source: its chat template can't be trained on as it is: {what} (message {index + 1}). From token"
            f" {at} on, at inference: {self._tokens(expected[at : at + 4])}; in the row:"
            f" {self._tokens(ids[at : at + 4])}. Use single-turn data, or a model whose template keeps the"
            " conversation as it was."
        )

    def _tokens(self, ids: list[int]) -> str:
        return " ".join(repr(self.tokenizer.decode([i])) for i in ids) or "nothing"
