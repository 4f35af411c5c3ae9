"""Stage sft: the trained model answers held-out prompts, and its answers are compared with those of the rows.

The workflow calls `evaluate` on every rank, after training and its last evaluation. A prompt is a row up to its last
answer. Ranks divide the prompts among them. Rank 0 writes predictions.jsonl into the reports.
"""

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from typing import NamedTuple

from finetune_api.defaults import ROLLOUT_MICRO_BATCHES
from transformers import PreTrainedTokenizerBase

from finetune_trainer import collectives
from finetune_trainer.data.datasets import TokenSequences
from finetune_trainer.data.row import Row
from finetune_trainer.generation import batched
from finetune_trainer.model import limits
from finetune_trainer.run import Run
from finetune_trainer.stages.sft import text_metrics
from finetune_trainer.training.loop import Training
from finetune_trainer.workspace.storage import save_errors

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.jsonl"


class Question(NamedTuple):
    """Token ids of a prompt, and of the answer that its row has."""

    prompt: list[int]
    answer: list[int]


def evaluate(
    run: Run,
    training: Training,
    tokens: PreTrainedTokenizerBase,
    splits: Mapping[str, TokenSequences],
    stop_ids: list[int],
) -> None:
    """Log eval_bleu_4, eval_rouge_1, eval_rouge_2, eval_rouge_l and eval_exact_match, if the job has
    evaluation.generate. Raises Preempted if a rank receives SIGTERM meanwhile."""
    spec = run.job.evaluation.generate if run.job.evaluation else None
    if spec is None or run.keeps:  # on CPUs answers might take days
        return
    asked = dict(islice(questions(splits.values()), spec.max_rows))
    if not asked:
        if run.is_main:
            log.warning(
                "No held-out row has a prompt and an answer (template.trainOnPrompt?). evaluation.generate has nothing"
                " to measure."
            )
        return
    answers = _generate(run, training, tokens, asked, spec.max_new_tokens, stop_ids)
    metrics: dict[str, float] = collectives.broadcast(_compare(run, tokens, asked, answers) if run.is_main else None)
    training.add_evaluation_metrics({f"eval_{name}": value for name, value in metrics.items()})


def _generate(
    run: Run,
    training: Training,
    tokens: PreTrainedTokenizerBase,
    asked: Mapping[int, Question],
    max_new_tokens: int,
    stop_ids: list[int],
) -> dict[int, list[int]]:
    """The model's answers to all questions, on every rank."""
    trainer = training.trainer
    model = trainer.accelerator.unwrap_model(trainer.model)
    known = limits.positions(model.config)
    positions = known.value if known else sys.maxsize
    longest = max((len(question.prompt) for question in asked.values()), default=0) + max_new_tokens
    rows = ROLLOUT_MICRO_BATCHES * run.micro_batch.rows(longest)
    room = {number: positions - len(question.prompt) for number, question in asked.items()}
    mine: dict[int, list[int]] = {}
    for limit, block in _blocks(room, max_new_tokens, rows * run.world_size):
        if trainer.any_rank_stops():
            training.stop()
        numbers = block[run.rank :: run.world_size]
        with trainer.accelerator.autocast():
            answers = batched.generate(
                model,
                [asked[number].prompt for number in numbers],
                max_new_tokens=limit,
                stop_ids=stop_ids,
                pad_id=tokens.pad_token_id,
                batch_size=rows,
            )
        mine |= dict(zip(numbers, answers, strict=True))
    return {number: answer for rank in collectives.all_gather_objects(mine) for number, answer in rank.items()}


def _blocks(room: Mapping[int, int], max_new_tokens: int, size: int) -> Iterator[tuple[int, list[int]]]:
    """(limit of new tokens, at most ``size`` prompts to answer at once). ``room``: positions of the model that each
    prompt leaves. Only prompts with the same limit are answered together, or a prompt that leaves little room would cut
    the answers to the others. Longest first: prompts of a batch have similar lengths, and all ranks end at about the
    same time."""

    def limit_of(number: int) -> int:
        return max(1, min(max_new_tokens, room[number]))

    for limit, group in groupby(sorted(room, key=lambda number: room[number]), key=limit_of):
        numbers = list(group)
        for first in range(0, len(numbers), size):
            yield limit, numbers[first : first + size]


def _compare(
    run: Run, tokens: PreTrainedTokenizerBase, asked: Mapping[int, Question], answers: Mapping[int, list[int]]
) -> dict[str, float]:
    """Write predictions.jsonl and compute the metrics."""
    lines = [
        {
            "prompt": _decode(tokens, asked[number].prompt, skip_special_tokens=False),
            "predict": text_of(tokens, answers[number]),
            "label": text_of(tokens, asked[number].answer),
        }
        for number in sorted(asked)
    ]
    with save_errors(run.folders.reports):
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (run.folders.reports / PREDICTIONS).write_text(content, encoding="utf-8")
    metrics = text_metrics.text_metrics([line["predict"] for line in lines], [line["label"] for line in lines])
    log.info("%d held-out prompts answered: %s", len(lines), " ".join(f"{n} {v:.2f}" for n, v in metrics.items()))
    return metrics


def questions(splits: Iterable[TokenSequences]) -> Iterator[tuple[int, Question]]:
    """(number of the row, its question), over all splits, for the rows that have a prompt."""
    number = 0
    for items in splits:
        for row in items.split:
            if (question := question_of(row)) is not None:
                yield number, question
            number += 1


def question_of(row: Row) -> Question | None:
    """The row up to its last answer, and that answer. None for a row without a prompt or without an answer."""
    if not row.trained or row.trained[-1][0] == 0:
        return None
    start, end = row.trained[-1]
    return Question(row.input_ids[:start], row.input_ids[start:end])


def text_of(tokens: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """An answer as text, without special tokens."""
    return _decode(tokens, ids, skip_special_tokens=True).strip()


def _decode(tokens: PreTrainedTokenizerBase, ids: list[int], *, skip_special_tokens: bool) -> str:
    text = tokens.decode(ids, skip_special_tokens=skip_special_tokens)
    assert isinstance(text, str)  # a list for a batch of ids
    return text
