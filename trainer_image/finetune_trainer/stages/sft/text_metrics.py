"""Similarity of answers to their references: BLEU, ROUGE and exact match, all times 100.

BLEU is sacrebleu's, of the whole corpus, up to 4-grams (Papineni et al., 2002; Post, 2018). ROUGE is the mean F-measure
by rouge-score (Lin, 2004). Exact match is the share of answers that equal their reference, apart from white space
around them. The numbers of LLaMA-Factory differ: it splits by jieba and averages BLEU over rows.

Words are split the same way for all languages: ROUGE ignores case, and a Chinese or Japanese character is a word.
"""

import re
from collections.abc import Sequence

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
"""Kana and Han characters, which are written without spaces between words."""
_CHARACTER = re.compile(f"([{_CJK}])")
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
"""Our names -> the names of rouge-score."""


def text_metrics(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """bleu_4, rouge_1, rouge_2, rouge_l and exact_match of answers, each with one reference."""
    # Imported here: only jobs with evaluation.generate need them.
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    pairs = list(zip(answers, references, strict=True))
    bleu = BLEU(tokenize="13a", force=True).corpus_score(
        [spaced(answer) for answer in answers], [[spaced(reference) for reference in references]]
    )
    scorer = RougeScorer(list(ROUGE.values()), tokenizer=_WordTokenizer())
    rouge = [scorer.score(target=reference, prediction=answer) for answer, reference in pairs]
    return {
        "bleu_4": float(bleu.score),
        **{ours: 100 * sum(scores[name].fmeasure for scores in rouge) / len(pairs) for ours, name in ROUGE.items()},
        "exact_match": 100 * sum(answer.strip() == reference.strip() for answer, reference in pairs) / len(pairs),
    }


def spaced(text: str) -> str:
    """The text with spaces around each character that is a word."""
    return _CHARACTER.sub(r" \1 ", text)


class _WordTokenizer:
    """A tokenizer for rouge-score, whose own drops whatever is not ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())
