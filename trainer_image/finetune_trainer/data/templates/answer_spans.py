"""The answer to a prompt in rendered text, and the check that it can be trained.

Training must show the model what it sees at inference: a row is the prompt of inference up to its first trained token,
and its last trained token stops generation. This module ensures both for text. ``data.tokenize`` checks that no token
spans the border between prompt and answer.
"""

from dataclasses import dataclass

from finetune_trainer.data.samples import Message, ToolSchema
from finetune_trainer.data.templates import tool_calls
from finetune_trainer.data.templates.tokenizer_template import TemplateMismatch, TokenizerTemplate


@dataclass(frozen=True, slots=True)
class Answer:
    """A trained turn in a text."""

    message: int
    """Index of the message."""
    spans: tuple[tuple[int, int], ...]
    """Trained characters. The first span begins at the end of the prompt, the last ends with the stop token."""
    stop: int
    """Where the stop token begins."""

    @property
    def start(self) -> int:
        return self.spans[0][0]

    @property
    def end(self) -> int:
        return self.spans[-1][1]


def render_answer(
    template: TokenizerTemplate, messages: list[Message], index: int, tools: list[ToolSchema]
) -> tuple[str, Answer]:
    """The prompt of inference for message ``index``, and the answer as the marked template writes it.

    The marked template may write earlier turns differently (TRL's variants keep all reasoning): then only the text
    after its own prompt is used. If that text does not continue its prompt, the template of inference is used. Raises
    TemplateMismatch.
    """
    prompt = template.render_inference_prompt(messages[:index], tools)
    messages = [*messages[:index], template.with_empty_reasoning(messages[index])]
    first_error: TemplateMismatch | None = None
    for source in dict.fromkeys((template.marked, template.own)):
        try:
            return _render_answer(template, source, messages, index, tools, prompt)
        except TemplateMismatch as error:
            first_error = first_error or error
    assert first_error
    raise first_error


def _render_answer(
    template: TokenizerTemplate,
    source: str,
    messages: list[Message],
    index: int,
    tools: list[ToolSchema],
    prompt: str,
) -> tuple[str, Answer]:
    text, marked = template.render(source, messages[: index + 1], tools, add_generation_prompt=False)
    own_prompt = prompt
    if not text.startswith(prompt):
        if source != template.own:
            own_prompt = template.render(source, messages[:index], tools, add_generation_prompt=True).text
        if not text.startswith(own_prompt):
            raise TemplateMismatch("prompt", f"message {index + 1}: {template.prompt_difference(prompt, text)}")
    start, offset = len(own_prompt), len(prompt) - len(own_prompt)
    stop = template.stop_pattern.search(text, start)
    if stop is None:
        raise TemplateMismatch(
            "stop",
            f"message {index + 1}: the answer does not end with a token that stops generation, so the model would never"
            f" learn to stop. It ends with {template.last_tokens(text[-24:], count=4)}; stop tokens (of the template,"
            f" eos_token of the tokenizer, eos_token_id in generation_config.json) are: {template.stop_names}",
        )
    rest = template.split_pattern.sub("", text[stop.end() :])
    if rest.strip():
        raise TemplateMismatch(
            "stopInside", f"message {index + 1} contains {stop[0]!r}, which stops generation, before {rest[:20]!r}"
        )
    _check_calls(template, messages[index], index, text[start : stop.end()])
    spans = [(max(a, start), min(b, stop.end())) for a, b in marked if b > start and a < stop.end()]
    if template.method == "prefix" or source != template.marked:
        spans = [(start, stop.end())]
    if not spans or spans[0][0] != start or spans[-1][1] != stop.end():
        raise TemplateMismatch(
            "marks",
            f"message {index + 1}: the template's {{% generation %}} marks do not enclose the whole answer from the end"
            f" of the prompt to {stop[0]!r}",
        )
    answer = Answer(index, tuple((a + offset, b + offset) for a, b in spans), stop.start() + offset)
    return prompt + text[start:], answer


def render_all_answers(
    template: TokenizerTemplate, messages: list[Message], answers: list[int], tools: list[ToolSchema]
) -> tuple[str, list[Answer]]:
    """The messages ``answers`` in a single text, wherever the template writes them, without the check of prompts.
    Raises TemplateMismatch."""
    used = messages[: answers[-1] + 1]
    text, marked = template.render(template.marked, used, tools, add_generation_prompt=False)
    assistants = [index for index, message in enumerate(used) if message["role"] == "assistant"]
    if len(marked) == len(assistants):
        opening = _opening(template, messages[: answers[-1]], tools)
        starts = {index: _after(opening, text, start) for index, (start, _) in zip(assistants, marked, strict=True)}
    else:
        prompts = {index: template.render_inference_prompt(messages[:index], tools) for index in answers}
        wrong = next((index for index in answers if not text.startswith(prompts[index])), None)
        if wrong is not None:
            difference = template.prompt_difference(prompts[wrong], text)
            raise TemplateMismatch("prompt", f"message {wrong + 1}: {difference}")
        starts = {index: len(prompts[index]) for index in answers}
    result = []
    for index in answers:
        start = starts[index]
        end = min((other for other in starts.values() if other > start), default=len(text))
        stop = template.stop_pattern.search(text, start, end)
        if stop is None:
            names = template.stop_names
            raise TemplateMismatch("stop", f"message {index + 1}: no stop token ({names}) after the answer")
        _check_calls(template, messages[index], index, text[start : stop.end()])
        result.append(Answer(index, ((start, stop.end()),), stop.start()))
    return text, result


def _opening(template: TokenizerTemplate, messages: list[Message], tools: list[ToolSchema]) -> str:
    """What the prompt of inference adds after the last message, such as an empty thought."""
    try:
        prompt = template.render_inference_prompt(messages, tools)
        without = template.render(template.own, messages, tools, add_generation_prompt=False).text
    except TemplateMismatch:
        return ""
    return prompt.removeprefix(without) if prompt.startswith(without) else ""


def _after(opening: str, text: str, start: int) -> int:
    """Where the answer begins that a mark encloses from ``start``: after the opening, which the model does not write
    at inference, although some templates mark a part of it."""
    found = text.rfind(opening, 0, start + len(opening))
    return max(start, found + len(opening)) if found >= 0 and found + len(opening) >= start else start


def _check_calls(template: TokenizerTemplate, message: Message, index: int, written: str) -> None:
    name = tool_calls.dropped_call(message, written)
    if name is not None:
        why = tool_calls.dropped_call_message(name, template.templates_with_tools)
        raise TemplateMismatch("tools", f"message {index + 1}: {why}")
