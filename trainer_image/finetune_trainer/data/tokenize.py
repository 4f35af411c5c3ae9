"""Samples -> rows of token ids, a batch at a time.

Called by whoever prepares data. The tokenizer is called once for the conversations of a batch; whether a prompt's
tokens are those of inference is then seen from its end alone: a special token splits the text whatever stands around
it, so what comes before the prompt's last one is equal in both because the texts are.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from finetune_trainer.data.row import Row
from finetune_trainer.data.samples import BadRow, Conversation, Document, Labelled, Preference, Prompt, Sample
from finetune_trainer.data.templates.template import PROBE, Draft, Template
from finetune_trainer.data.templates.turns import Answer, Misfit
from finetune_trainer.errors import InvalidSpec

TAIL = 512
"""Characters at the end of a prompt in which its last special token is looked for."""
TAILS_KEPT = 4096


class Encoded(NamedTuple):
    """Token ids of a text, and where they stand in it, if the tokenizer is one that can tell."""

    ids: list[int]
    positions: Any | None

    def token_at(self, char: int) -> int | None:
        found: int | None = self.positions.char_to_token(char) if self.positions is not None else None
        return found


def tokenize_batch(
    samples: Sequence[Sample], template: Template | None, cutoff: int, tokenizer: Any
) -> list[list[Row] | BadRow]:
    """For each sample its rows or what is wrong with it: of a preference the chosen one and the rejected one, else one
    or, where ``template.history`` splits, several. Rows keep their first ``cutoff`` tokens; 0 keeps all. A row that
    lost every trained token has no spans, and a prompt that is longer has no tokens: they are for the caller to count.
    Raises InvalidSpec when not the row but the template is wrong."""
    results: list[list[Row] | BadRow] = [[] for _ in samples]
    chats: list[tuple[int, Draft]] = []
    documents: list[int] = []
    for index, sample in enumerate(samples):
        if isinstance(sample, Document):
            documents.append(index)
            continue
        if template is None:
            raise InvalidSpec("conversations need a chat template, and this stage has none: use format text")
        try:
            chats += [(index, draft) for draft in _drafts(sample, template)]
        except (Misfit, BadRow) as error:
            results[index] = judged(error, template)
    if documents:
        texts = [sample.text for sample in samples if isinstance(sample, Document)]
        for index, row in zip(documents, _documents(texts, cutoff, tokenizer), strict=True):
            results[index] = row
    if chats and template is not None:
        encoded = encode(tokenizer, [draft.text for _, draft in chats])
        for (index, draft), row_ids in zip(chats, encoded, strict=True):
            rows = results[index]
            if isinstance(rows, list):
                try:
                    rows.append(_row_of(samples[index], draft, row_ids, template, cutoff))
                except (Misfit, BadRow) as error:
                    results[index] = judged(error, template)
    return results


def encode(tokenizer: Any, texts: list[str], *, add_special_tokens: bool = False) -> list[Encoded]:
    """One call, whose result is as the tokenizer's own for each text."""
    made = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    positions = made.encodings or [None] * len(texts)
    return [Encoded(ids, where) for ids, where in zip(made["input_ids"], positions, strict=True)]


def judged(error: Misfit | BadRow, template: Template) -> BadRow:
    """Whose fault it is: the template's, if not even the plainest conversation can be trained with it."""
    if isinstance(error, BadRow):
        return error
    try:
        for draft in template.drafts(PROBE, []):
            _row(draft, encode(template.tokenizer, [draft.text])[0], template, 0)
    except (Misfit, BadRow):
        chosen = f"template.name: {template.spec.name}" if template.spec.name else "model.source: its chat template"
        raise InvalidSpec(
            f"{chosen} can't be trained on as it is: {error}. Use the model's chat or instruct variant, another"
            " template by template.name, or template.history asRendered to train it nevertheless."
        ) from None
    return BadRow(error.rule, str(error))


def _drafts(sample: Sample, template: Template) -> list[Draft]:
    if isinstance(sample, Conversation):
        return template.drafts(sample.messages, sample.tools)
    if isinstance(sample, Prompt):
        return [template.prompt(sample.messages, sample.tools)]
    assert not isinstance(sample, Document)
    answers = [sample.chosen, sample.rejected] if isinstance(sample, Preference) else [sample.answer]
    since = len(sample.prompt)
    return [template.drafts([*sample.prompt, *answer], sample.tools, since=since, split=False)[0] for answer in answers]


def _documents(texts: list[str], cutoff: int, tokenizer: Any) -> list[list[Row] | BadRow]:
    end = tokenizer.eos_token_id
    if end is None:
        raise InvalidSpec(
            "model.source: its tokenizer has no eos_token, which ends every document; set eos_token in it"
        )
    rows: list[list[Row] | BadRow] = []
    for text, (ids, _) in zip(texts, encode(tokenizer, texts, add_special_tokens=True), strict=True):
        if not text:
            rows.append(BadRow("empty", "the document is empty"))
        else:
            whole = ids if ids and ids[-1] == end else [*ids, end]
            rows.append([_cut(whole, [(0, len(whole))], cutoff)])
    return rows


def _row_of(sample: Sample, draft: Draft, encoded: Encoded, template: Template, cutoff: int) -> Row:
    """The row as the sample's kind has it."""
    if isinstance(sample, Prompt):
        # The end of a prompt is what is asked: a prompt is whole or useless.
        return Row([] if 0 < cutoff < len(encoded.ids) else encoded.ids, [])
    if isinstance(sample, Conversation):
        return _row(draft, encoded, template, cutoff)
    whole = _row(draft, encoded, template, 0)
    # A generated answer ends at its stop token, and so does one that is compared or scored: not at the line break that
    # some templates put between turns.
    row = _cut(whole.input_ids[: whole.trained[-1][1]], whole.trained, cutoff)
    return row._replace(desirable=sample.desirable) if isinstance(sample, Labelled) else row


def _row(draft: Draft, encoded: Encoded, template: Template, cutoff: int) -> Row:
    spans: list[tuple[int, int]] = []
    for answer in draft.answers:
        spans += _trained(draft, answer, encoded, template)
    if draft.everything:
        spans = [(0, len(encoded.ids))]
    return _cut(encoded.ids, spans, cutoff)


def _cut(ids: list[int], spans: list[tuple[int, int]], cutoff: int) -> Row:
    if not 0 < cutoff < len(ids):
        return Row(ids, spans)
    kept = [(start, min(end, cutoff)) for start, end in spans if start < cutoff]
    return Row(ids[:cutoff], [] if kept == [(0, 1)] else kept, len(ids) - cutoff)


def _trained(draft: Draft, answer: Answer, encoded: Encoded, template: Template) -> list[tuple[int, int]]:
    """Characters -> tokens."""
    first = _after_prompt(draft, answer, encoded, template)
    stop = encoded.token_at(answer.stop)
    if stop is None:  # a tokenizer without positions
        stop = len(template.ids(draft.text[: answer.end])) - 1
    if stop >= len(encoded.ids) or encoded.ids[stop] not in template.stop_ids or stop < first:
        raise Misfit(
            "stop",
            f"message {answer.message + 1}: {draft.text[answer.stop : answer.end]!r} after the answer isn't a token of"
            f" its own, so nothing would stop there; the answer ends with {template.tokens(draft.text[: answer.end])}",
        )
    if len(answer.spans) == 1:
        return [(first, stop + 1)]
    inner = [_token_from(draft.text, char, encoded, template) for span in answer.spans for char in span][1:-1]
    edges = [first, *inner, stop + 1]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def _after_prompt(draft: Draft, answer: Answer, encoded: Encoded, template: Template) -> int:
    """The first token of the answer. Raises Misfit when the tokens before it aren't those of the prompt alone."""
    text, end = draft.text, answer.start
    if not draft.gated:
        return _token_from(text, end, encoded, template)
    begin = max(0, end - TAIL)
    last = next(iter(deque(template.special.finditer(text, begin, end), maxlen=1)), None)
    if last is not None and encoded.positions is not None:
        tail = text[last.start() : end]
        ids = template.tails.get(tail)
        if ids is None:
            if len(template.tails) >= TAILS_KEPT:
                template.tails.clear()
            ids = template.tails[tail] = template.ids(tail)
        at = encoded.token_at(last.start())
        if at is not None and encoded.ids[at : at + len(ids)] == ids:
            return at + len(ids)
    prompt = template.ids(text[:end])
    if encoded.ids[: len(prompt)] == prompt:
        return len(prompt)
    if text[end].isspace():
        raise BadRow(
            "whiteSpace",
            f"message {answer.message + 1}: the answer begins with white space, which this tokenizer joins with the end"
            " of the prompt, so the model could never answer so; remove it",
        )
    raise Misfit("prompt", f"message {answer.message + 1}: {template.token_difference(prompt, encoded.ids)}")


def _token_from(text: str, char: int, encoded: Encoded, template: Template) -> int:
    """The first token that begins at ``char`` or later."""
    if encoded.positions is None:
        return len(template.ids(text[:char]))
    at = encoded.token_at(char)
    if at is None:
        return len(encoded.ids)
    begins: int = encoded.positions.token_to_chars(at)[0]
    return at if begins >= char else at + 1
