"""Draws of rows: the same for a seed, by the weights, and never a conversation on both sides of a split."""

import numpy as np
import pytest
from finetune_api.data import Mixing
from finetune_trainer.errors import InvalidData
from finetune_trainer.prepare import selection


def every(*counts: int) -> list[selection.Indices]:
    return [np.arange(count) for count in counts]


def test_a_sample_has_the_size_asked_for_and_depends_on_the_seed() -> None:
    drawn = selection.sample(1000, 10, 1, 0)
    assert len(set(drawn.tolist())) == 10
    assert drawn.tolist() == selection.sample(1000, 10, 1, 0).tolist()
    assert drawn.tolist() != selection.sample(1000, 10, 2, 0).tolist()
    assert selection.sample(5, 10, 1, 0).tolist() == [0, 1, 2, 3, 4]


def test_held_out_rows_are_not_trained() -> None:
    train, held = selection.hold_out(every(70, 30), 0.1, 3)
    for kept, out, whole in zip(train, held, (70, 30), strict=True):
        assert sorted([*kept.tolist(), *out.tolist()]) == list(range(whole))
    assert sum(map(len, held)) == 10
    assert [len(part) for part in selection.hold_out(every(2), 0.01, 3)[1]] == [1]
    with pytest.raises(InvalidData, match="at least two rows"):
        selection.hold_out(every(1), 0.5, 3)


def test_concatenation_keeps_the_order() -> None:
    sets, groups = selection.mix(every(2, 3), "concatenate", [], 0)
    assert list(zip(sets.tolist(), groups.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_interleave_under_ends_with_the_first_exhausted_data_set_and_repeats_no_row() -> None:
    sets, groups = selection.mix(every(100_000, 1000), "interleaveUnder", [3, 1], 5)
    drawn = list(zip(sets.tolist(), groups.tolist(), strict=True))
    assert len(set(drawn)) == len(drawn)
    assert (sets == 1).sum() == 1000
    assert sets[-1] == 1
    assert 2600 < (sets == 0).sum() < 3400


def test_interleave_over_ends_when_all_data_sets_are_exhausted_and_repeats_the_shorter() -> None:
    sets, groups = selection.mix(every(3000, 100), "interleaveOver", [1, 1], 5)
    assert set(groups[sets == 0].tolist()) == set(range(3000))
    shorter = np.bincount(groups[sets == 1])
    assert len(shorter) == 100
    assert shorter.max() - shorter.min() <= 1
    assert shorter.min() > 20


@pytest.mark.parametrize("mixing", ["interleaveUnder", "interleaveOver"])
def test_a_mixture_is_a_function_of_the_seed(mixing: Mixing) -> None:
    one, same, other = (selection.mix(every(50, 60), mixing, [1, 2], seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert len(one[0]) != len(other[0]) or not np.array_equal(one, other)


def test_a_group_is_written_as_a_whole() -> None:
    """Data set 0 has groups of 1 and 3 rows, data set 1 has a group of 2."""
    sizes = [np.array([1, 3], np.int32), np.array([2], np.int32)]
    picks = selection.expand(np.array([1, 0, 0]), np.array([0, 1, 0]), sizes)
    assert list(zip(picks.datasets.tolist(), picks.rows.tolist(), strict=True)) == [
        (1, 0),
        (1, 1),
        (0, 1),
        (0, 2),
        (0, 3),
        (0, 0),
    ]
