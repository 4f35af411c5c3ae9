"""Which tokens of a row are trained, and which rows and chat templates are refused."""

from typing import Any

import pytest
from finetune_api.data import TemplateSpec
from finetune_trainer.data.row import Row
from finetune_trainer.data.samples import BadRow, Conversation, Document, Labelled, Message, Preference, Prompt, Sample
from finetune_trainer.data.templates import Template
from finetune_trainer.data.tokenize import tokenize_batch
from finetune_trainer.errors import InvalidSpec

from tests.trainer import tiny

ONE: list[Message] = [{"role": "user", "content": "say alpha"}, {"role": "assistant", "content": "alpha"}]
TWO: list[Message] = [
    {"role": "system", "content": "be brief"},
    *ONE,
    {"role": "user", "content": "say beta"},
    {"role": "assistant", "content": "beta beta"},
]


def template(text: str | None = tiny.CHATML, **settings: Any) -> Template:
    tokenizer = tiny.tokenizer(text)
    return Template(tokenizer, frozenset({tokenizer.eos_token_id}), TemplateSpec(**settings))


def make(sample: Sample, by: Template, cutoff: int = 0) -> list[Row] | BadRow:
    return tokenize_batch([sample], by, cutoff, by.tokenizer)[0]


def rows(sample: Sample, by: Template, cutoff: int = 0) -> list[Row]:
    made = make(sample, by, cutoff)
    assert not isinstance(made, BadRow), made
    return made


def trained(made: list[Row], by: Template) -> list[list[str]]:
    return [[by.tokenizer.decode(row.input_ids[start:end]) for start, end in row.trained] for row in made]


def test_every_answer_and_its_stop_token_are_trained_and_nothing_else() -> None:
    chatml = template()
    made = rows(Conversation(TWO), chatml)
    assert trained(made, chatml) == [["alpha<|im_end|>", "beta beta<|im_end|>"]]
    assert chatml.tokenizer.decode(made[0].input_ids[: made[0].trained[1][0]]) == chatml.ask(TWO[:-1])


def test_the_user_chooses_what_is_trained() -> None:
    last = template(mask_history=True)
    assert trained(rows(Conversation(TWO), last), last) == [["beta beta<|im_end|>"]]
    whole = template(train_on_prompt=True, default_system="be kind")
    (row,) = rows(Conversation(ONE), whole)
    assert row.trained == [(0, len(row.input_ids))]
    assert "be kind" in whole.tokenizer.decode(row.input_ids)


@pytest.mark.parametrize("history", ["split", "asRendered"])
def test_answers_of_weight_0_are_seen_and_not_trained(history: str) -> None:
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
    assert isinstance(none, BadRow)
    assert none.rule == "noAnswer"


def test_a_long_row_loses_its_end_and_says_how_much() -> None:
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


def test_an_answer_that_melts_into_the_prompt_is_named() -> None:
    # The tokenizer has a token for two line breaks: the prompt's last one and the answer's first become one.
    bad = make(Conversation([ONE[0], {"role": "assistant", "content": "\n\nalpha"}]), template())
    assert isinstance(bad, BadRow)
    assert bad.rule == "whiteSpace"
    assert "message 2: the answer begins with white space" in str(bad)


def test_an_answer_that_stops_in_its_middle_is_named() -> None:
    bad = make(Conversation([ONE[0], {"role": "assistant", "content": "al<|im_end|>pha"}]), template())
    assert isinstance(bad, BadRow)
    assert bad.rule == "stopInside"


THINKS = tiny.CHATML.replace("assistant\n{% endif", "assistant\n<think></think>{% endif")
NO_STOP = tiny.CHATML.replace("<|im_end|>", "")
FORGETS = tiny.CHATML.replace(
    "{{ message.content }}",
    "{{ message.content if loop.last or message.role != 'assistant' else message.content[:2] }}",
)


def test_a_template_that_asks_differently_than_it_trains_is_refused_with_the_tokens() -> None:
    with pytest.raises(InvalidSpec, match=r"message 2: the prompt.*at inference: '<' 't' 'h' 'i'; in the row: 'a'"):
        make(Conversation(ONE), template(THINKS))


def test_a_template_without_stop_token_is_refused() -> None:
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
def test_answers_that_look_different_once_the_conversation_goes_on(history: str, expected: list[list[str]]) -> None:
    forgets = template(FORGETS, history=history)
    assert trained(rows(Conversation(TWO), forgets), forgets) == expected
    assert trained(rows(Conversation(ONE), forgets), forgets) == [["alpha<|im_end|>"]]


def test_what_a_template_refuses_is_the_rows_fault() -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.CHATML
    bad = make(Conversation(TWO), template(refuses))
    assert isinstance(bad, BadRow)
    assert "chat template refuses it: no system role" in str(bad)


def test_a_template_that_writes_the_date_writes_the_same_one_every_day() -> None:
    dated = template("{{ strftime_now('%d %b %Y') + '\n' }}" + tiny.CHATML)
    (row,) = rows(Conversation(ONE), dated)
    assert dated.tokenizer.decode(row.input_ids).startswith("26 Jul 2024\n")
    assert dated.ask(ONE[:1]).startswith("26 Jul 2024\n")
    assert dated.facts()["date"] == "2024-07-26"


def test_tools_are_not_left_out_without_a_word() -> None:
    bad = make(Conversation(ONE, [{"type": "function", "function": {"name": "f"}}]), template())
    assert isinstance(bad, BadRow)
    assert bad.rule == "tools"


def test_preferences_and_labelled_answers_share_the_prompt() -> None:
    chatml = template()
    other: list[Message] = [{"role": "assistant", "content": "beta"}]
    chosen, rejected = rows(Preference(ONE[:1], ONE[1:], other), chatml)
    assert trained([chosen, rejected], chatml) == [["alpha<|im_end|>"], ["beta<|im_end|>"]]
    start = chosen.trained[0][0]
    assert chosen.input_ids[:start] == rejected.input_ids[:start]
    assert rows(Labelled(ONE[:1], other, desirable=False), chatml) == [rejected._replace(desirable=False)]


@pytest.mark.parametrize("broken_first", [True, False])
def test_a_pair_is_refused_with_either_of_its_answers(broken_first: bool) -> None:
    melting: list[Message] = [{"role": "assistant", "content": "\n\nbeta"}]
    answers = (melting, ONE[1:]) if broken_first else (ONE[1:], melting)
    refused = make(Preference(ONE[:1], *answers), template())
    assert isinstance(refused, BadRow)
    assert refused.rule == "whiteSpace"


def test_answers_that_are_compared_end_at_their_stop_token_as_generated_ones_do() -> None:
    chatml = template()
    (row,) = rows(Labelled(ONE[:1], ONE[1:], desirable=True), chatml)
    (conversation,) = rows(Conversation(ONE), chatml)
    length = len(row.input_ids)
    assert row == Row(conversation.input_ids[:length], conversation.trained)
    assert row.trained[-1][1] == length
    assert chatml.tokenizer.decode(conversation.input_ids[length:]) == "\n"
    assert rows(Labelled(ONE[:1], ONE[1:], desirable=True), chatml, length)[0].cut == 0


def test_a_prompt_is_that_of_inference_or_left_out_when_it_is_too_long() -> None:
    chatml = template(default_system="be kind")
    (row,) = rows(Prompt(TWO[1:4]), chatml)
    assert chatml.tokenizer.decode(row.input_ids) == chatml.ask(TWO[1:4])
    assert row.trained == []
    assert rows(Prompt(TWO[1:4]), chatml, len(row.input_ids)) == [row]
    assert rows(Prompt(TWO[1:4]), chatml, len(row.input_ids) - 1) == [Row([], [])]


def test_a_prompt_with_tools_needs_a_template_that_has_a_place_for_them() -> None:
    refused = make(Prompt(ONE[:1], [{"type": "function", "function": {"name": "f"}}]), template())
    assert isinstance(refused, BadRow)
    assert refused.rule == "tools"


def test_documents_end_with_the_end_token_and_are_trained_whole() -> None:
    tokenizer = tiny.tokenizer(None)
    made = tokenize_batch([Document("say alpha")], None, 0, tokenizer)[0]
    assert isinstance(made, list)
    assert tokenizer.decode(made[0].input_ids) == "say alpha<|im_end|>"
    assert made[0].trained_tokens == len(made[0].input_ids) - 1


def test_a_tokenizer_without_template_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="no chat template"):
        template(None)


@pytest.mark.parametrize("sample", [Conversation(ONE), Conversation(TWO)])
def test_a_tokenizer_that_knows_no_positions_makes_the_same_rows(
    sample: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = rows(sample, template())
    from transformers import BatchEncoding

    monkeypatch.setattr(BatchEncoding, "encodings", None)
    assert rows(sample, template()) == fast
