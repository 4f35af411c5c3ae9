"""Which tokens of a row are trained, and which rows and chat templates are rejected."""

from typing import Any

import pytest
from finetune_api.data import TemplateSpec
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
from finetune_trainer.data.templates import ChatTemplate
from finetune_trainer.data.tokenize import tokenize_batch
from finetune_trainer.errors import InvalidSpec

from tests.trainer.support import tiny
from tests.unit.trainer.tokenizers import tokenizer_of

ONE: list[Message] = [{"role": "user", "content": "say alpha"}, {"role": "assistant", "content": "alpha"}]
TWO: list[Message] = [
    {"role": "system", "content": "be brief"},
    *ONE,
    {"role": "user", "content": "say beta"},
    {"role": "assistant", "content": "beta beta"},
]


def template(text: str | None = tiny.CHATML, **settings: Any) -> ChatTemplate:
    tokenizer = tiny.tokenizer(text)
    return ChatTemplate(tokenizer, frozenset({tokenizer.eos_token_id}), TemplateSpec(**settings))


def make(sample: Sample, by: ChatTemplate, cutoff: int = 0) -> list[Row] | RowError:
    return tokenize_batch([sample], by, cutoff, by.tokenizer)[0]


def rows(sample: Sample, by: ChatTemplate, cutoff: int = 0) -> list[Row]:
    made = make(sample, by, cutoff)
    assert not isinstance(made, RowError), made
    return made


def trained(made: list[Row], by: ChatTemplate) -> list[list[str]]:
    return [[tokenizer_of(by).decode(row.input_ids[start:end]) for start, end in row.trained] for row in made]


def test_every_answer_and_its_stop_token_are_trained_and_nothing_else() -> None:
    chatml = template()
    made = rows(Conversation(TWO), chatml)
    assert trained(made, chatml) == [["alpha<|im_end|>", "beta beta<|im_end|>"]]
    assert tokenizer_of(chatml).decode(made[0].input_ids[: made[0].trained[1][0]]) == chatml.render_prompt(TWO[:-1])


def test_the_user_chooses_what_is_trained() -> None:
    last = template(mask_history=True)
    assert trained(rows(Conversation(TWO), last), last) == [["beta beta<|im_end|>"]]
    whole = template(train_on_prompt=True, default_system="be kind")
    (row,) = rows(Conversation(ONE), whole)
    assert row.trained == [(0, len(row.input_ids))]
    assert "be kind" in tokenizer_of(whole).decode(row.input_ids)


@pytest.mark.parametrize("history", ["split", "asRendered"])
def test_answers_of_weight_0_are_in_the_row_but_not_trained(history: str) -> None:
    chatml = template(history=history)
    first: list[Message] = [*TWO[:2], {**TWO[2], "weight": 0}, *TWO[3:]]
    (row,) = rows(Conversation(first), chatml)
    assert trained([row], chatml) == [["beta beta<|im_end|>"]]
    assert row.input_ids == rows(Conversation(TWO), chatml)[0].input_ids
    last: list[Message] = [*TWO[:4], {**TWO[4], "weight": 0}]
    assert trained(rows(Conversation(last), chatml), chatml) == [["alpha<|im_end|>"]]
    assert trained(rows(Conversation([*first[:4], {**TWO[4], "weight": 1}]), chatml), chatml) == [
        ["beta beta<|im_end|>"]
    ]
    none = make(Conversation([ONE[0], {**ONE[1], "weight": 0}]), chatml)
    assert isinstance(none, RowError)
    assert none.rule == "noAnswer"


def test_a_long_row_is_cut_and_counts_the_cut_tokens() -> None:
    chatml = template()
    (whole,) = rows(Conversation(ONE), chatml)
    length, start = len(whole.input_ids), whole.trained[0][0]
    assert rows(Conversation(ONE), chatml, length) == [whole]
    (cut,) = rows(Conversation(ONE), chatml, start + 1)
    assert (cut.input_ids, cut.trained, cut.cut) == (
        whole.input_ids[: start + 1],
        [(start, start + 1)],
        length - start - 1,
    )
    assert rows(Conversation(ONE), chatml, start)[0].trained == []


def test_an_answer_whose_first_token_joins_the_prompt_is_an_error() -> None:
    # The tokenizer has a token for two line breaks: the prompt's last one and the answer's first become one.
    bad = make(Conversation([ONE[0], {"role": "assistant", "content": "\n\nalpha"}]), template())
    assert isinstance(bad, RowError)
    assert bad.rule == "whiteSpace"
    assert "message 2: the answer begins with white space" in str(bad)


def test_an_answer_with_a_stop_token_inside_is_an_error() -> None:
    bad = make(Conversation([ONE[0], {"role": "assistant", "content": "al<|im_end|>pha"}]), template())
    assert isinstance(bad, RowError)
    assert bad.rule == "stopInside"


THINKS = tiny.CHATML.replace("assistant\n{% endif", "assistant\n<think></think>{% endif")
NO_STOP = tiny.CHATML.replace("<|im_end|>", "")
FORGETS = tiny.CHATML.replace(
    "{{ message.content }}",
    "{{ message.content if loop.last or message.role != 'assistant' else message.content[:2] }}",
)


def test_a_template_with_other_prompts_in_training_is_rejected_with_the_tokens() -> None:
    with pytest.raises(
        InvalidSpec,
        match=r"message 2: the row does not begin with the prompt.*at inference: '<' 't' 'h' 'i'; in the row: 'a'",
    ):
        make(Conversation(ONE), template(THINKS))


def test_a_template_without_stop_token_is_rejected() -> None:
    with pytest.raises(InvalidSpec, match=r"never learn to stop.*'<\|im_end\|>'"):
        make(Conversation(ONE), template(NO_STOP))


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ("split", [["alpha<|im_end|>"], ["beta beta<|im_end|>"]]),
        ("lastTurn", [["beta beta<|im_end|>"]]),
        ("asRendered", [["al<|im_end|>", "beta beta<|im_end|>"]]),
    ],
)
def test_answers_that_look_different_in_a_longer_conversation(history: str, expected: list[list[str]]) -> None:
    forgets = template(FORGETS, history=history)
    assert trained(rows(Conversation(TWO), forgets), forgets) == expected
    assert trained(rows(Conversation(ONE), forgets), forgets) == [["alpha<|im_end|>"]]


def test_a_conversation_that_the_template_rejects_is_a_row_error() -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.CHATML
    bad = make(Conversation(TWO), template(refuses))
    assert isinstance(bad, RowError)
    assert "chat template rejects it: no system role" in str(bad)


def test_a_template_with_the_date_writes_the_same_date_every_day() -> None:
    dated = template("{{ strftime_now('%d %b %Y') + '\n' }}" + tiny.CHATML)
    (row,) = rows(Conversation(ONE), dated)
    assert tokenizer_of(dated).decode(row.input_ids).startswith("26 Jul 2024\n")
    assert dated.render_prompt(ONE[:1]).startswith("26 Jul 2024\n")
    assert dated.facts()["date"] == "2024-07-26"


def test_tools_are_not_dropped_silently() -> None:
    bad = make(Conversation(ONE, [{"type": "function", "function": {"name": "f"}}]), template())
    assert isinstance(bad, RowError)
    assert bad.rule == "tools"


def test_preferences_and_labelled_answers_share_the_prompt() -> None:
    chatml = template()
    other: list[Message] = [{"role": "assistant", "content": "beta"}]
    chosen, rejected = rows(Preference(ONE[:1], ONE[1:], other), chatml)
    assert trained([chosen, rejected], chatml) == [["alpha<|im_end|>"], ["beta<|im_end|>"]]
    start = chosen.trained[0][0]
    assert chosen.input_ids[:start] == rejected.input_ids[:start]
    assert rows(LabelledAnswer(ONE[:1], other, desirable=False), chatml) == [rejected._replace(desirable=False)]


@pytest.mark.parametrize("broken_first", [True, False])
def test_a_pair_is_rejected_with_either_answer(broken_first: bool) -> None:
    melting: list[Message] = [{"role": "assistant", "content": "\n\nbeta"}]
    answers = (melting, ONE[1:]) if broken_first else (ONE[1:], melting)
    refused = make(Preference(ONE[:1], *answers), template())
    assert isinstance(refused, RowError)
    assert refused.rule == "whiteSpace"


def test_compared_answers_end_at_their_stop_token_like_generated_answers() -> None:
    chatml = template()
    (row,) = rows(LabelledAnswer(ONE[:1], ONE[1:], desirable=True), chatml)
    (conversation,) = rows(Conversation(ONE), chatml)
    length = len(row.input_ids)
    assert row == Row(conversation.input_ids[:length], conversation.trained)
    assert row.trained[-1][1] == length
    assert tokenizer_of(chatml).decode(conversation.input_ids[length:]) == "\n"
    assert rows(LabelledAnswer(ONE[:1], ONE[1:], desirable=True), chatml, length)[0].cut == 0


def test_a_prompt_is_the_prompt_of_inference_and_too_long_prompts_are_empty() -> None:
    chatml = template(default_system="be kind")
    (row,) = rows(Prompt(TWO[1:4]), chatml)
    assert tokenizer_of(chatml).decode(row.input_ids) == chatml.render_prompt(TWO[1:4])
    assert row.trained == []
    assert rows(Prompt(TWO[1:4]), chatml, len(row.input_ids)) == [row]
    assert rows(Prompt(TWO[1:4]), chatml, len(row.input_ids) - 1) == [Row([], [])]


def test_a_prompt_with_tools_needs_a_template_that_supports_them() -> None:
    refused = make(Prompt(ONE[:1], [{"type": "function", "function": {"name": "f"}}]), template())
    assert isinstance(refused, RowError)
    assert refused.rule == "tools"


def test_documents_end_with_the_end_token_and_all_their_tokens_are_trained() -> None:
    tokenizer = tiny.tokenizer(None)
    made = tokenize_batch([Document("say alpha")], None, 0, tokenizer)[0]
    assert isinstance(made, list)
    assert tokenizer.decode(made[0].input_ids) == "say alpha<|im_end|>"
    assert made[0].trained_tokens == len(made[0].input_ids) - 1


def test_a_tokenizer_without_template_is_rejected() -> None:
    with pytest.raises(InvalidSpec, match="no chat template"):
        template(None)


@pytest.mark.parametrize("sample", [Conversation(ONE), Conversation(TWO)])
def test_a_tokenizer_without_positions_makes_the_same_rows(
    sample: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = rows(sample, template())
    from transformers import BatchEncoding

    monkeypatch.setattr(BatchEncoding, "encodings", None)
    assert rows(sample, template()) == fast
