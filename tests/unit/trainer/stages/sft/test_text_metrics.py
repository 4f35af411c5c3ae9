"""BLEU, ROUGE and exact match of answers, in any script."""

import pytest
from finetune_trainer.stages.sft import text_metrics
from sacrebleu.metrics.bleu import BLEU

CHINESE = "我很喜欢在公园里散步", "我很喜欢在家里看书"


def test_an_answer_that_equals_its_reference_scores_100() -> None:
    texts = ["The cat sat on the mat.", "Кошка сидит на большом ковре", "我很喜欢在公园里散步"]
    measured = text_metrics.text_metrics([f" {text}\n" for text in texts], texts)
    assert measured == pytest.approx(
        {"bleu_4": 100, "rouge_1": 100, "rouge_2": 100, "rouge_l": 100, "exact_match": 100}
    )


def test_an_answer_with_half_of_the_words() -> None:
    measured = text_metrics.text_metrics(["The cat slept there"], ["the cat sat down"])
    assert measured["rouge_1"] == pytest.approx(50)  # the, cat: of 4 and of 4
    assert measured["rouge_2"] == pytest.approx(100 / 3)  # the cat: of 3 and of 3
    assert measured["rouge_l"] == pytest.approx(50)
    assert measured["exact_match"] == 0


def test_words_in_other_scripts_count() -> None:
    measured = text_metrics.text_metrics(["Кошка сидит"], ["Кошка спит"])
    assert measured["rouge_1"] == pytest.approx(50)


def test_characters_of_chinese_and_japanese_are_words() -> None:
    answer, wanted = CHINESE
    measured = text_metrics.text_metrics([answer], [wanted])
    assert measured["rouge_1"] == pytest.approx(100 * 2 * 6 / 19)  # 我很喜欢在里: 6, of 10 and of 9
    assert measured["bleu_4"] == pytest.approx(BLEU(tokenize="zh", force=True).corpus_score([answer], [[wanted]]).score)
    assert text_metrics.text_metrics(["ねこがすき"], ["ねこがいる"])["rouge_1"] == pytest.approx(60)


def test_the_share_of_answers_that_match() -> None:
    assert text_metrics.text_metrics(["a b", "c", "d", "e"], ["a b", "c", "x", "y"])["exact_match"] == 50


def test_an_answer_without_words_is_no_error() -> None:
    measured = text_metrics.text_metrics(["", "..."], ["something was wanted", "this, too"])
    assert measured == {"bleu_4": 0, "rouge_1": 0, "rouge_2": 0, "rouge_l": 0, "exact_match": 0}
