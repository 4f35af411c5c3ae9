"""Which tokens of a row are trained, and which chat templates are refused."""

import pytest
from finetune_trainer.data.formats import BadRow, Conversation
from finetune_trainer.data.template import Template
from finetune_trainer.data.tokenize import IGNORED, Row, tokenize
from finetune_trainer.errors import InvalidSpec

from tests.trainer import tiny

ONE: Conversation = [{"role": "user", "content": "say alpha"}, {"role": "assistant", "content": "alpha"}]
TWO: Conversation = [
    {"role": "system", "content": "be brief"},
    *ONE,
    {"role": "user", "content": "say beta"},
    {"role": "assistant", "content": "beta beta"},
]


def template(text: str = tiny.CHATML) -> Template:
    tokenizer = tiny.tokenizer(text)
    return Template(tokenizer, frozenset({tokenizer.eos_token_id}))


def trained_text(row: Row, with_template: Template) -> list[str]:
    """The trained stretches of a row, as text."""
    stretches: list[list[int]] = [[]]
    for token, label in zip(row.input_ids, row.labels, strict=True):
        if label != IGNORED:
            assert label == token
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return [with_template.tokenizer.decode(stretch) for stretch in stretches if stretch]


def test_the_answer_and_its_stop_token_are_trained_and_nothing_else() -> None:
    chatml = template()
    row = tokenize(ONE, chatml, cutoff=1000)
    assert trained_text(row, chatml) == ["alpha<|im_end|>"]
    assert chatml.tokenizer.decode(row.input_ids) == chatml.render(ONE, ask=False)
    assert not row.cut


def test_every_assistant_turn_is_trained() -> None:
    chatml = template()
    assert trained_text(tokenize(TWO, chatml, 1000), chatml) == ["alpha<|im_end|>", "beta beta<|im_end|>"]


@pytest.mark.parametrize("turn", [2, 4])
def test_what_comes_before_a_turn_is_what_inference_would_show(turn: int) -> None:
    chatml = template()
    ids, spans = chatml.row(TWO)
    start = spans[turn // 2 - 1].start
    assert ids[:start] == chatml.ids(chatml.render(TWO[:turn], ask=True))


def test_a_long_row_is_cut_at_its_end() -> None:
    chatml = template()
    whole = tokenize(ONE, chatml, 1000)
    length = len(whole.input_ids)
    assert tokenize(ONE, chatml, length) == whole
    cut = tokenize(ONE, chatml, length - 3)
    assert (cut.input_ids, cut.labels, cut.cut) == (whole.input_ids[:-3], whole.labels[:-3], True)
    start = next(i for i, label in enumerate(whole.labels) if label != IGNORED)
    assert tokenize(ONE, chatml, start).trained == 0
    assert tokenize(ONE, chatml, start + 1).trained == 1


def test_a_default_system_prompt_is_seen_and_not_trained() -> None:
    default = "{% if messages[0].role != 'system' %}<|im_start|>system\nhelp<|im_end|>\n{% endif %}" + tiny.CHATML
    with_default = template(default)
    row = tokenize(ONE, with_default, 1000)
    assert trained_text(row, with_default) == ["alpha<|im_end|>"]
    assert "help" in with_default.tokenizer.decode(row.input_ids)


def test_an_answer_that_melts_into_the_prompt_is_named() -> None:
    # The tokenizer has a token for two line breaks: the prompt's last one and the answer's first become one.
    row: Conversation = [ONE[0], {"role": "assistant", "content": "\n\nalpha"}]
    with pytest.raises(BadRow, match=r"message 2: the answer begins with white space.*remove it"):
        tokenize(row, template(), 1000)


THINKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think></think>{% endif %}"
)
NO_STOP = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content if loop.last or message.role != 'assistant' else message.content[:2] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_asks_differently_than_it_trains_is_refused_with_the_tokens() -> None:
    message = r"prompt at inference.*\(message 2\).*at inference: '<' 't' 'h' 'i'; in the row: 'a' 'lp' 'ha'"
    with pytest.raises(InvalidSpec, match=message):
        tokenize(ONE, template(THINKS), 1000)


def test_a_template_without_stop_token_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"never learn to stop.*stop tokens .* are: '<\|im_end\|>'"):
        tokenize([ONE[0], {"role": "assistant", "content": "x"}], template(NO_STOP), 1000)


def test_a_template_that_rewrites_earlier_answers_is_refused_for_several_turns_only() -> None:
    forgets = template(FORGETS)
    assert trained_text(tokenize(ONE, forgets, 1000), forgets) == ["alpha<|im_end|>"]
    with pytest.raises(InvalidSpec, match=r"looks different once the conversation goes on.*Use single-turn data"):
        tokenize(TWO, forgets, 1000)


def test_what_a_template_refuses_is_the_rows_fault() -> None:
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.CHATML
    with pytest.raises(BadRow, match="chat template refuses it: no system role"):
        tokenize(TWO, template(no_system), 1000)


def test_a_tokenizer_without_template_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="no chat template"):
        Template(tiny.tokenizer(None), frozenset())
