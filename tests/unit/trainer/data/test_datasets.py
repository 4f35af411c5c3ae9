"""Datasets of the stages with answers: pairs, labelled answers with mismatched answers, and prompts."""

from pathlib import Path

import pytest
from finetune_trainer.data.datasets import MISMATCHED, LabelledAnswers, Pairs, Prompts, mismatched
from finetune_trainer.data.row import IGNORED, Row
from finetune_trainer.data.splits import ShardWriter, Split, open_split

X = IGNORED
GOOD, BAD = Row([1, 2, 3], [(2, 3)]), Row([1, 2, 4, 5], [(2, 4)])
BETTER, WORSE = Row([6, 7, 8, 9, 9], [(1, 3), (4, 5)]), Row([6, 9], [(1, 2)])


def split(folder: Path, rows: list[Row]) -> Split:
    writer = ShardWriter(folder, "train", rows_per_shard=3)
    writer.write(rows)
    writer.close()
    return open_split(folder, "train")


def test_a_batch_of_pairs_has_the_chosen_rows_first(tmp_path: Path) -> None:
    pairs = Pairs(split(tmp_path, [GOOD, BAD, BETTER, WORSE]))
    batch = pairs.batch([1, 0])
    assert batch["input_ids"].tolist() == [[6, 7, 8, 9, 9, 1, 2, 3, 6, 9, 1, 2, 4, 5]]
    assert batch["labels"].tolist() == [[X, 7, 8, X, 9, X, X, 3, X, 9, X, X, 4, 5]]
    assert batch["lengths"] == (5, 3, 2, 4)
    assert len(pairs) == 2
    assert pairs.lengths.tolist() == [4, 5]


def test_a_split_with_half_a_pair_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has an even number of rows, and this split has 3"):
        Pairs(split(tmp_path, [GOOD, BAD, BETTER]))


def test_a_labelled_answer_is_batched_with_the_answer_of_the_row_before_it(tmp_path: Path) -> None:
    rows = LabelledAnswers(split(tmp_path, [GOOD, BAD._replace(desirable=False), BETTER, WORSE]))
    batch = rows.batch([(1, 2), (3, 0)])
    assert batch["desirable"].tolist() == [False, True]
    assert batch["input_ids"].tolist() == [[1, 2, 4, 5, 6, 9]]
    assert batch["labels"].tolist() == [[X, X, 4, 5, X, 9]]
    assert batch["lengths"] == (4, 2)
    borrowed = batch[MISMATCHED]
    assert borrowed["input_ids"].tolist() == [[1, 2, 7, 8, 9, 9, 6, 3]]
    assert borrowed["labels"].tolist() == [[X, X, 7, 8, X, 9, X, 3]]
    assert borrowed["lengths"] == (6, 2)
    assert len(rows) == 4
    assert rows.lengths.tolist() == [3, 4, 5, 2]


@pytest.mark.parametrize(
    ("cutoff", "ids", "trained"),
    [
        (0, [1, 2, 7, 8, 9, 9], [(2, 4), (5, 6)]),
        (5, [1, 2, 7, 8, 9], [(2, 4)]),
        (3, [1, 2, 7], [(2, 3)]),
        (2, [1, 2], []),
    ],
)
def test_the_cutoff_limits_mismatched_rows(cutoff: int, ids: list[int], trained: list[tuple[int, int]]) -> None:
    assert mismatched(GOOD, BETTER, cutoff) == Row(ids, trained)


def test_prompts_are_rows_without_trained_tokens(tmp_path: Path) -> None:
    prompts = Prompts(split(tmp_path, [Row([1, 2, 3], []), Row([4], [])]))
    assert [prompts.prompt(item) for item in range(len(prompts))] == [[1, 2, 3], [4]]
    assert prompts.lengths.tolist() == [3, 1]
