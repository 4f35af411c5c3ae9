"""Batches of the stages that compare answers: pairs, labelled answers and their mismatched neighbours, and prompts."""

from pathlib import Path

import pytest
from finetune_trainer.data.labelled import Labelled, mismatched
from finetune_trainer.data.pairs import Pairs
from finetune_trainer.data.prompts import Prompts
from finetune_trainer.data.row import IGNORED, Row
from finetune_trainer.data.store import ShardWriter, Split, open_split

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
    batch = pairs.collator(0, "sdpa")([1, 0])
    assert batch["input_ids"].tolist() == [[6, 7, 8, 9, 9], [1, 2, 3, 0, 0], [6, 9, 0, 0, 0], [1, 2, 4, 5, 0]]
    assert batch["labels"].tolist() == [[X, 7, 8, X, 9], [X, X, 3, X, X], [X, 9, X, X, X], [X, X, 4, 5, X]]
    assert batch["attention_mask"].sum(1).tolist() == [5, 3, 2, 4]
    assert batch["tokens"].item() == 14
    assert len(pairs) == 2
    assert pairs.lengths.tolist() == [4, 5]


def test_a_split_with_half_a_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 rows holds no pairs"):
        Pairs(split(tmp_path, [GOOD, BAD, BETTER]))


def test_a_labelled_answer_comes_with_the_answer_of_the_row_before_it(tmp_path: Path) -> None:
    rows = Labelled(split(tmp_path, [GOOD, BAD._replace(desirable=False), BETTER, WORSE]))
    batch = rows.collator(0, "sdpa")([(1, 2), (3, 0)])
    assert batch["desirable"].tolist() == [False, True]
    assert batch["input_ids"].tolist() == [[1, 2, 4, 5], [6, 9, 0, 0]]
    assert batch["labels"].tolist() == [[X, X, 4, 5], [X, 9, X, X]]
    assert batch["kl_input_ids"].tolist() == [[1, 2, 7, 8, 9, 9], [6, 3, 0, 0, 0, 0]]
    assert batch["kl_labels"].tolist() == [[X, X, 7, 8, X, 9], [X, 3, X, X, X, X]]
    assert batch["kl_attention_mask"].sum(1).tolist() == [6, 2]
    assert batch["tokens"].item() == 6
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
def test_cutoff_ends_mismatched_rows(cutoff: int, ids: list[int], trained: list[tuple[int, int]]) -> None:
    assert mismatched(GOOD, BETTER, cutoff) == Row(ids, trained)


def test_prompts_are_rows_of_which_nothing_is_trained(tmp_path: Path) -> None:
    prompts = Prompts(split(tmp_path, [Row([1, 2, 3], []), Row([4], [])]))
    assert [prompts.prompt(item) for item in range(len(prompts))] == [[1, 2, 3], [4]]
    assert prompts.lengths.tolist() == [3, 1]
