"""Stage sft: what the trained model answers to held-out prompts, beside what it should have answered.

Called by the workflow on every rank once training and its last evaluation are over. A prompt is a row up to its last
answer. Ranks share the rows; rank 0 writes predictions.jsonl into the reports.
"""

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from typing import Any

from finetune_trainer.checkpoints.storage import guard
from finetune_trainer.data.items import Items
from finetune_trainer.data.row import Row
from finetune_trainer.evaluation import generate, text_metrics
from finetune_trainer.run import Run
from finetune_trainer.stages import agree

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.jsonl"
MICRO_BATCHES = 4
"""Rows answered at once by each rank, in micro-batches: nothing is kept for a backward pass."""


def sft_metrics(
    run: Run, trainer: Any, tokens: Any, splits: Mapping[str, Items], stop_ids: list[int]
) -> dict[str, float] | None:
    """eval_bleu_4, eval_rouge_1, eval_rouge_2, eval_rouge_l and eval_exact_match; none where the job asks for none.
    None where a rank was told to stop meanwhile, and all ranks left it."""
    spec = run.job.evaluation.generate if run.job.evaluation else None
    if spec is None:
        return {}
    asked = dict(islice(questions(splits.values()), spec.max_rows))
    if not asked:
        if run.is_main:
            log.warning(
                "no held-out row has a prompt and an answer of its own (template.trainOnPrompt?): none is asked"
            )
        return {}
    model = trainer.accelerator.unwrap_model(trainer.model)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    rows = MICRO_BATCHES * run.micro_batch_size
    room = {number: positions - len(prompt) for number, (prompt, _) in asked.items()}
    mine: dict[int, list[int]] = {}
    for most, block in _blocks(room, spec.max_new_tokens, rows * run.world_size):
        if any(stop for (stop,) in agree.share([run.stop_requested()], trainer.args.device)):
            return None
        share = block[run.rank :: run.world_size]
        with trainer.accelerator.autocast():
            made = generate.answers(
                model,
                [asked[number][0] for number in share],
                max_new_tokens=most,
                stop_ids=stop_ids,
                pad_id=tokens.pad_token_id,
                batch_size=rows,
            )
        mine |= dict(zip(share, made, strict=True))
    answered = {number: answer for rank in agree.gather(mine) for number, answer in rank.items()}
    measured = _compare(run, tokens, asked, answered) if run.is_main else None
    measured = agree.from_main(measured)
    return {f"eval_{name}": value for name, value in measured.items()}


def _blocks(room: Mapping[int, int], longest: int, size: int) -> Iterator[tuple[int, list[int]]]:
    """(tokens that an answer may have, prompts to answer at once, at most ``size``), of the positions that each prompt
    leaves in the model. Only prompts with the same limit are answered together, or one that leaves little would cut
    those beside it short. Longest first, so that those who share a batch are of like length; and all ranks end at about
    the same time."""

    def most(number: int) -> int:
        return max(1, min(longest, room[number]))

    for limit, group in groupby(sorted(room, key=lambda number: room[number]), key=most):
        numbers = list(group)
        for first in range(0, len(numbers), size):
            yield limit, numbers[first : first + size]


def _compare(
    run: Run, tokens: Any, asked: Mapping[int, tuple[list[int], list[int]]], answered: Mapping[int, list[int]]
) -> dict[str, float]:
    """Write the answers down and measure them."""
    lines = [
        {
            "prompt": tokens.decode(asked[number][0]),
            "predict": text_of(tokens, answered[number]),
            "label": text_of(tokens, asked[number][1]),
        }
        for number in sorted(asked)
    ]
    with guard(run.folders.reports):
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (run.folders.reports / PREDICTIONS).write_text(content, encoding="utf-8")
    measured = text_metrics.measure([line["predict"] for line in lines], [line["label"] for line in lines])
    log.info("%d held-out prompts answered: %s", len(lines), " ".join(f"{n} {v:.2f}" for n, v in measured.items()))
    return measured


def questions(splits: Iterable[Items]) -> Iterator[tuple[int, tuple[list[int], list[int]]]]:
    """(number of the row, (prompt, its answer)), over all splits. A row without a prompt of its own asks nothing."""
    number = 0
    for items in splits:
        for row in items.split:
            if (parts := parted(row)) is not None:
                yield number, parts
            number += 1


def parted(row: Row) -> tuple[list[int], list[int]] | None:
    """The row up to its last answer, and that answer."""
    if not row.trained or row.trained[-1][0] == 0:
        return None
    start, end = row.trained[-1]
    return row.input_ids[:start], row.input_ids[start:end]


def text_of(tokens: Any, ids: list[int]) -> str:
    """An answer for people, and to compare."""
    text: str = tokens.decode(ids, skip_special_tokens=True)
    return text.strip()
