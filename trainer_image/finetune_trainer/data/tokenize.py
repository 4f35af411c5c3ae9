"""Samples -> rows of token ids, a batch at a time.

Preparation's worker processes call it. The tokenizer is called once for all conversations of a batch. Whether a
prompt's tokens are those of inference is decided by the end of the prompt alone: a special token splits the text
whatever stands around it, so everything before the prompt's last special token has equal tokens because the texts are
equal.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune_trainer.data.row import Row
from finetune_trainer.data.samples import (
    Conversation,
    Document,
    LabelledAnswer,
    Message,
    Preference,
    Prompt,
    RowError,
    Sample,
)
from finetune_trainer.data.templates.answer_spans import Answer
from finetune_trainer.data.templates.chat_template import PROBE, ChatTemplate, RenderedRow
from finetune_trainer.data.templates.left_out import left_out as find_left_out
from finetune_trainer.data.templates.tokenizer_template import TemplateMismatch
from finetune_trainer.errors import InvalidSpec

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

PROMPT_END = 512
"""Characters at the end of a prompt that are searched for its last special token."""
CACHED_PROMPT_ENDS = 4096


class Encoded(NamedTuple):
    """Token ids of a text, and their positions in the text; None if the tokenizer does not report positions."""

    ids: list[int]
    positions: "Encoding | None"

    def token_at(self, char: int) -> int | None:
        """Index of the token that contains a character."""
        index: int | None = self.positions.char_to_token(char) if self.positions is not None else None
        return index


def tokenize_batch(
    samples: Sequence[Sample],
    template: ChatTemplate | None,
    cutoff: int,
    tokenizer: "PreTrainedTokenizerBase",
    left_out: "Counter[str] | None" = None,
) -> list[list[Row] | RowError]:
    """The rows of each sample, or its error. A preference has two rows, chosen and rejected; other samples have one,
    or several if ``template.history`` splits them. Rows keep their first ``cutoff`` tokens; 0 keeps all. A row that
    lost all trained tokens has no spans, a prompt that is too long has no tokens, and the rows of a pair may have
    become equal; the caller counts all three. ``left_out`` counts what the template does not write, by samples. Raises
    InvalidSpec if the template, not the row, is at fault."""
    results: list[list[Row] | RowError] = [[] for _ in samples]
    rendered: list[tuple[int, RenderedRow]] = []
    documents: list[int] = []
    for index, sample in enumerate(samples):
        if isinstance(sample, Document):
            documents.append(index)
            continue
        if template is None:
            raise InvalidSpec(
                "conversations need a chat template, and this stage has none. Use format text, or another stage"
            )
        try:
            rendered += [(index, row) for row in _rendered_rows(sample, template)]
        except (TemplateMismatch, RowError) as error:
            results[index] = row_error(error, template)
    if documents:
        texts = [sample.text for sample in samples if isinstance(sample, Document)]
        for index, rows in zip(documents, _document_rows(texts, cutoff, tokenizer), strict=True):
            results[index] = rows
    if rendered and template is not None:
        encoded = encode(tokenizer, [row.text for _, row in rendered])
        for (index, row), encoding in zip(rendered, encoded, strict=True):
            rows = results[index]
            if isinstance(rows, list):
                try:
                    rows.append(_sample_row(samples[index], row, encoding, template, cutoff))
                except (TemplateMismatch, RowError) as error:
                    results[index] = row_error(error, template)
        for index, texts in _texts(rendered).items():
            rows, sample = results[index], samples[index]
            if isinstance(sample, Preference) and isinstance(rows, list):
                results[index] = rows = _pair(rows, cutoff)
            if left_out is not None and isinstance(rows, list) and not isinstance(sample, Document):
                try:
                    left_out.update(find_left_out(_messages(sample), sample.tools, texts))
                except RecursionError:
                    results[index] = RowError("wrong-type", "found lists or objects that are nested too deeply")
    return results


def encode(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], *, add_special_tokens: bool = False
) -> list[Encoded]:
    """Encode all texts in a single call; the result equals that of a call per text."""
    tokenize: Any = tokenizer
    batch = tokenize(
        texts,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    positions = batch.encodings or [None] * len(texts)
    return [Encoded(ids, encoding) for ids, encoding in zip(batch["input_ids"], positions, strict=True)]


def row_error(error: TemplateMismatch | RowError, template: ChatTemplate) -> RowError:
    """The error of a row. Raises InvalidSpec if the template is at fault: if not even the simplest conversation can be
    trained with it."""
    if isinstance(error, RowError):
        return error
    try:
        _probe(template)
    except (TemplateMismatch, RowError):
        raise _unusable(template, error) from None
    return RowError(error.rule, str(error))


def stop_token(template: ChatTemplate) -> int:
    """The token that ends an answer. Rows with answers have it, or are refused. Stage ppo reads prompts alone, so it
    has to ask. Raises InvalidSpec if no token that stops generation ends an answer."""
    try:
        row = _probe(template)
    except (TemplateMismatch, RowError) as fault:
        if fault.rule == "stop":
            raise _unusable(template, fault) from None
        return min(template.stop_ids)  # the template can't be trained, but its prompts can be answered
    return row.input_ids[row.trained[-1][1] - 1]


def _probe(template: ChatTemplate) -> Row:
    """The row of the simplest conversation. Raises TemplateMismatch, RowError."""
    (rendered,) = template.render_rows(PROBE, [])
    return _conversation_row(rendered, encode(template.tokenizer, [rendered.text])[0], template, 0)


def _unusable(template: ChatTemplate, fault: TemplateMismatch | RowError) -> InvalidSpec:
    name = template.settings.name
    culprit = f"template.name: {name}" if name else "model.source: its chat template"
    remedy = (
        "Use the model's chat or instruct variant, another template with template.name, or template.history asRendered"
        " to train it nevertheless."
    )
    if fault.rule == "stop":
        remedy = (
            "Set eos_token in the model's tokenizer_config.json to the token with which the template ends an answer,"
            " use the model's chat or instruct variant, or another template with template.name."
        )
    return InvalidSpec(f"{culprit} cannot be used for training: {fault}. {remedy}")


def _rendered_rows(sample: Sample, template: ChatTemplate) -> list[RenderedRow]:
    if isinstance(sample, Conversation):
        return template.render_rows(sample.messages, sample.tools)
    if isinstance(sample, Prompt):
        return [template.render_prompt_row(sample.messages, sample.tools)]
    assert not isinstance(sample, Document)
    answers = [sample.chosen, sample.rejected] if isinstance(sample, Preference) else [sample.answer]
    since = len(sample.prompt)
    return [
        template.render_rows([*sample.prompt, *answer], sample.tools, since=since, split=False)[0] for answer in answers
    ]


def _document_rows(texts: list[str], cutoff: int, tokenizer: "PreTrainedTokenizerBase") -> list[list[Row] | RowError]:
    end: Any = tokenizer.eos_token_id
    if end is None:
        raise InvalidSpec(
            "model.source: its tokenizer has no eos_token, which ends every document. Set eos_token in the tokenizer"
        )
    rows: list[list[Row] | RowError] = []
    for text, (ids, _) in zip(texts, encode(tokenizer, texts, add_special_tokens=True), strict=True):
        if not text:
            rows.append(RowError("empty", "the document is empty, expected text"))
        else:
            ended = ids if ids and ids[-1] == end else [*ids, end]
            rows.append([_cut(ended, [(0, len(ended))], cutoff)])
    return rows


def _sample_row(sample: Sample, row: RenderedRow, encoded: Encoded, template: ChatTemplate, cutoff: int) -> Row:
    """The row, as the kind of the sample requires."""
    if isinstance(sample, Prompt):
        # The question is at the end of a prompt, so a prompt that does not fit is useless.
        return Row([] if 0 < cutoff < len(encoded.ids) else encoded.ids, [])
    if isinstance(sample, Conversation):
        return _conversation_row(row, encoded, template, cutoff)
    uncut = _conversation_row(row, encoded, template, 0)
    # A generated answer ends at its stop token. An answer that is compared or scored must end there, too, not at the
    # line break that some templates write between turns.
    ids = uncut.input_ids[: uncut.trained[-1][1]]
    if isinstance(sample, LabelledAnswer):
        return _cut(ids, uncut.trained, cutoff)._replace(desirable=sample.desirable)
    return Row(ids, uncut.trained)  # `_pair` cuts both rows


def _pair(rows: list[Row], cutoff: int) -> list[Row] | RowError:
    """Both rows of a pair, cut. Their texts differ, but a chat template may trim white space, for example, and a
    tokenizer may normalize characters."""
    chosen, rejected = rows
    if chosen.input_ids == rejected.input_ids:
        found = "both answers have the same tokens: the chat template or the tokenizer makes them alike"
        return RowError("no-preference", f"{found}. Expected two different answers")
    return [_cut(row.input_ids, row.trained, cutoff) for row in rows]


def _texts(rendered: list[tuple[int, RenderedRow]]) -> dict[int, list[str]]:
    """Index of a sample -> its rendered texts, the longest conversation first."""
    texts: dict[int, list[str]] = {}
    for index, row in reversed(rendered):
        texts.setdefault(index, []).append(row.text)
    return texts


def _messages(sample: Conversation | Preference | LabelledAnswer | Prompt) -> list[Message]:
    if isinstance(sample, Preference):
        return [*sample.prompt, *sample.chosen, *sample.rejected]
    if isinstance(sample, LabelledAnswer):
        return [*sample.prompt, *sample.answer]
    return sample.messages


def _conversation_row(row: RenderedRow, encoded: Encoded, template: ChatTemplate, cutoff: int) -> Row:
    spans: list[tuple[int, int]] = []
    for answer in row.answers:
        spans += _token_spans(row, answer, encoded, template)
    if row.train_all:
        spans = [(0, len(encoded.ids))]
    return _cut(encoded.ids, spans, cutoff)


def _cut(ids: list[int], spans: list[tuple[int, int]], cutoff: int) -> Row:
    if not 0 < cutoff < len(ids):
        return Row(ids, spans)
    remaining = [(start, min(end, cutoff)) for start, end in spans if start < cutoff]
    return Row(ids[:cutoff], [] if remaining == [(0, 1)] else remaining, len(ids) - cutoff)


def _token_spans(row: RenderedRow, answer: Answer, encoded: Encoded, template: ChatTemplate) -> list[tuple[int, int]]:
    """The trained tokens of an answer's trained characters."""
    first = _first_answer_token(row, answer, encoded, template)
    stop = encoded.token_at(answer.stop)
    if stop is None:  # a tokenizer without positions
        stop = len(template.ids(row.text[: answer.end])) - 1
    if stop >= len(encoded.ids) or encoded.ids[stop] not in template.stop_ids or stop < first:
        raise TemplateMismatch(
            "stop",
            f"message {answer.message + 1}: {row.text[answer.stop : answer.end]!r} after the answer is not a token of"
            f" its own, so generation would not stop; the answer ends with"
            f" {template.last_tokens(row.text[: answer.end])}",
        )
    if stop == first:
        raise RowError("empty-text", f"message {answer.message + 1}: the answer has no tokens, expected text")
    if len(answer.spans) == 1:
        return [(first, stop + 1)]
    inner = [_token_from(row.text, char, encoded, template) for span in answer.spans for char in span][1:-1]
    edges = [first, *inner, stop + 1]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def _first_answer_token(row: RenderedRow, answer: Answer, encoded: Encoded, template: ChatTemplate) -> int:
    """Index of the answer's first token. Raises TemplateMismatch or RowError if the tokens before it are not those of
    the prompt alone."""
    text, end = row.text, answer.start
    if not row.prompts_checked:
        return _token_from(text, end, encoded, template)
    begin = max(0, end - PROMPT_END)
    last = next(iter(deque(template.split_pattern.finditer(text, begin, end), maxlen=1)), None)
    if last is not None and encoded.positions is not None:
        prompt_end = text[last.start() : end]
        ids = template.prompt_end_ids.get(prompt_end)
        if ids is None:
            if len(template.prompt_end_ids) >= CACHED_PROMPT_ENDS:
                template.prompt_end_ids.clear()
            ids = template.prompt_end_ids[prompt_end] = template.ids(prompt_end)
        start = encoded.token_at(last.start())
        if start is not None and encoded.ids[start : start + len(ids)] == ids:
            return start + len(ids)
    prompt = template.ids(text[:end])
    if encoded.ids[: len(prompt)] == prompt:
        return len(prompt)
    if text[end].isspace():
        raise RowError(
            "whiteSpace",
            f"message {answer.message + 1}: the answer begins with white space, which this tokenizer joins with the end"
            " of the prompt, so the model could not generate this answer. Remove the white space",
        )
    raise TemplateMismatch("prompt", f"message {answer.message + 1}: {template.token_difference(prompt, encoded.ids)}")


def _token_from(text: str, char: int, encoded: Encoded, template: ChatTemplate) -> int:
    """Index of the first token that begins at ``char`` or later."""
    if encoded.positions is None:
        return len(template.ids(text[:char]))
    index = encoded.token_at(char)
    if index is None:
        return len(encoded.ids)
    chars = encoded.positions.token_to_chars(index)
    assert chars is not None  # only of the special tokens that a tokenizer adds, which rendered text has already
    return index if chars[0] >= char else index + 1
