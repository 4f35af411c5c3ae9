"""One answer after its prompt, and the gate on it.

Used by `template`. Training must show the model what it will see when it is asked: a row is the inference prompt up to
its first trained token, and its last trained token stops generation. Here that is made and checked on text; that the
tokens don't join across the seams is checked by ``data.tokenize``.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.samples import Message
from finetune_trainer.data.templates import calls

if TYPE_CHECKING:
    from finetune_trainer.data.templates.template import Template


class Misfit(Exception):
    """An answer can't be trained: because of the row or because of the template."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Answer:
    """A trained turn inside a text."""

    message: int
    """Index of the message."""
    spans: tuple[tuple[int, int], ...]
    """Characters that are trained: the first begin where the prompt ends, the last are the stop token."""
    stop: int
    """Where the stop token begins."""

    @property
    def start(self) -> int:
        return self.spans[0][0]

    @property
    def end(self) -> int:
        return self.spans[-1][1]


def alone(template: "Template", messages: list[Message], index: int, tools: list[dict[str, Any]]) -> tuple[str, Answer]:
    """The prompt for message ``index`` as inference has it, and the answer as the template with marks writes it.

    That template may write history otherwise (TRL's variants keep all reasoning): then only what it writes after its
    own prompt is taken. If it doesn't continue its prompt, the template without marks is tried.
    """
    prompt = template.render(template.own, messages[:index], tools, ask=True).text
    messages = [*messages[:index], template.answered(messages[index])]
    first: Misfit | None = None
    for source in dict.fromkeys((template.marked, template.own)):
        try:
            return _answer(template, source, messages, index, tools, prompt)
        except Misfit as error:
            first = first or error
    assert first
    raise first


def _answer(
    template: "Template", source: str, messages: list[Message], index: int, tools: list[dict[str, Any]], prompt: str
) -> tuple[str, Answer]:
    text, marked = template.render(source, messages[: index + 1], tools, ask=False)
    before = prompt
    if not text.startswith(prompt):
        before = prompt if source == template.own else template.render(source, messages[:index], tools, ask=True).text
        if not text.startswith(before):
            raise Misfit("prompt", f"message {index + 1}: {template.difference(prompt, text)}")
    skipped, moved = len(before), len(prompt) - len(before)
    stop = template.stops.search(text, skipped)
    if stop is None:
        raise Misfit(
            "stop",
            f"message {index + 1}: the answer doesn't end with a token that stops generation, so the model would never"
            f" learn to stop. It ends with {template.tokens(text[-24:], last=4)}; stop tokens (of the template,"
            f" eos_token of the tokenizer, eos_token_id in generation_config.json) are: {template.stop_names}",
        )
    rest = template.special.sub("", text[stop.end() :])
    if rest.strip():
        raise Misfit(
            "stopInside", f"message {index + 1} contains {stop[0]!r}, at which generation stops, before {rest[:20]!r}"
        )
    _check_calls(messages[index], index, text[skipped : stop.end()])
    spans = [(max(a, skipped), min(b, stop.end())) for a, b in marked if b > skipped and a < stop.end()]
    if template.method == "prefix" or source != template.marked:
        spans = [(skipped, stop.end())]
    if not spans or spans[0][0] != skipped or spans[-1][1] != stop.end():
        raise Misfit(
            "marks",
            f"message {index + 1}: the template's {{% generation %}} marks don't hold the whole answer from the end of"
            f" the prompt to {stop[0]!r}",
        )
    answer = Answer(index, tuple((a + moved, b + moved) for a, b in spans), stop.start() + moved)
    return prompt + text[skipped:], answer


def as_rendered(
    template: "Template", messages: list[Message], turns: list[int], tools: list[dict[str, Any]]
) -> tuple[str, list[Answer]]:
    """All of ``turns`` in one text, wherever the template puts them, without the gate on prompts."""
    text, marked = template.render(template.marked, messages[: turns[-1] + 1], tools, ask=False)
    assistants = [index for index, message in enumerate(messages[: turns[-1] + 1]) if message["role"] == "assistant"]
    if len(marked) == len(assistants):
        starts = dict(zip(assistants, (start for start, _ in marked), strict=True))
    else:
        prompts = {k: template.render(template.own, messages[:k], tools, ask=True).text for k in turns}
        wrong = next((k for k in turns if not text.startswith(prompts[k])), None)
        if wrong is not None:
            raise Misfit("prompt", f"message {wrong + 1}: {template.difference(prompts[wrong], text)}")
        starts = {k: len(prompts[k]) for k in turns}
    answers = []
    for k in turns:
        end = min((start for start in starts.values() if start > starts[k]), default=len(text))
        stop = template.stops.search(text, starts[k], end)
        if stop is None:
            raise Misfit("stop", f"message {k + 1}: no stop token ({template.stop_names}) after the answer")
        _check_calls(messages[k], k, text[starts[k] : stop.end()])
        answers.append(Answer(k, ((starts[k], stop.end()),), stop.start()))
    return text, answers


def _check_calls(message: Message, index: int, written: str) -> None:
    name = calls.missing(message, written)
    if name is not None:
        raise Misfit("tools", f"message {index + 1}: {calls.left_out(name)}")
