"""How alike answers and what was wanted are: BLEU, ROUGE and exact match, all times 100.

Called by `held_out`. BLEU is sacrebleu's of the whole corpus, up to 4-grams (Papineni et al., 2002; Post, 2018); ROUGE
is the mean F-measure by rouge-score (Lin, 2004); exact match is the share of answers that are the wanted text but for
white space around it. LLaMA-Factory's numbers differ: it splits by jieba and averages BLEU over rows.

Words are told apart as in no one language: case doesn't count for ROUGE, and a Chinese or Japanese character is a word.
"""

import re
from collections.abc import Sequence

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
"""Kana and Han characters: written without spaces, so that words can't be told apart by looking."""
_CHARACTER = re.compile(f"([{_CJK}])")
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
"""Our names -> those of rouge-score."""


def measure(answers: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """bleu_4, rouge_1, rouge_2, rouge_l and exact_match of answers, each with the one text that was wanted."""
    # Imported here: only jobs that measure texts need them.
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    pairs = list(zip(answers, wanted, strict=True))
    bleu = BLEU(tokenize="13a", force=True).corpus_score([spaced(a) for a in answers], [[spaced(w) for w in wanted]])
    scorer = RougeScorer(list(ROUGE.values()), tokenizer=_Words())
    rouge = [scorer.score(target=wish, prediction=answer) for answer, wish in pairs]
    return {
        "bleu_4": float(bleu.score),
        **{ours: 100 * sum(one[name].fmeasure for one in rouge) / len(pairs) for ours, name in ROUGE.items()},
        "exact_match": 100 * sum(answer.strip() == wish.strip() for answer, wish in pairs) / len(pairs),
    }


def spaced(text: str) -> str:
    """With spaces around each character that is a word."""
    return _CHARACTER.sub(r" \1 ", text)


class _Words:
    """What rouge-score asks of a tokenizer. Its own drops whatever is not ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())
