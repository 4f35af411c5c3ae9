"""Packing: no token is lost, no pack is too long, and there is little padding."""

from collections.abc import Callable

import numpy as np
import pytest
from finetune_trainer.data.pack import Packs, Piece, bfd, wrapped


def mixed_lengths(count: int = 20_000, cutoff: int = 2048) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    """Many short rows, a few long rows, some of them cut: typical for chat data."""
    drawn = np.random.default_rng(7).lognormal(5.5, 1.0, count)
    return np.clip(drawn, 4, cutoff).astype(np.int32)


def pieces(packs: Packs) -> list[Piece]:
    return [piece for index in range(len(packs)) for piece in packs[index]]


def test_best_fit_keeps_every_row_whole_and_once() -> None:
    lengths = mixed_lengths()
    packs = bfd(lengths, 2048)
    assert sorted(pieces(packs)) == [(row, 0, length) for row, length in enumerate(lengths.tolist())]
    assert packs.lengths.max() <= 2048


def test_best_fit_pads_less_than_three_percent() -> None:
    lengths = mixed_lengths()
    packs = bfd(lengths, 2048)
    assert 1 - lengths.sum() / (len(packs) * 2048) < 0.03


def test_best_fit_takes_the_fullest_pack_with_room() -> None:
    packs = bfd(np.array([6, 3, 7, 4], np.int32), 10)
    assert [[piece.row for piece in packs[index]] for index in range(2)] == [[2, 1], [0, 3]]


def test_best_fit_rejects_a_row_that_was_not_cut() -> None:
    with pytest.raises(ValueError, match="9 tokens"):
        bfd(np.array([3, 9], np.int32), 8)


def test_the_stream_is_cut_into_full_packs() -> None:
    packs = wrapped(np.array([5, 3, 10], np.int32), 4)
    assert [packs[index] for index in range(len(packs))] == [
        [(0, 0, 4)],
        [(0, 4, 5), (1, 0, 3)],
        [(2, 0, 4)],
        [(2, 4, 8)],
        [(2, 8, 10)],
    ]
    assert packs.lengths.tolist() == [4, 4, 4, 4, 2]


def test_a_single_token_left_over_makes_no_pack() -> None:
    packs = wrapped(np.array([5, 3, 1], np.int32), 4)
    assert [packs[index] for index in range(len(packs))] == [[(0, 0, 4)], [(0, 4, 5), (1, 0, 3)]]


def test_the_stream_holds_every_token_once() -> None:
    lengths = mixed_lengths(count=500)
    packs = wrapped(lengths, 1000)
    assert packs.lengths[:-1].tolist() == [1000] * (len(packs) - 1)
    seen = [(row, token) for row, start, end in pieces(packs) for token in range(start, end)]
    assert seen == [(row, token) for row, length in enumerate(lengths.tolist()) for token in range(length)]


@pytest.mark.parametrize("way", [bfd, wrapped])
def test_no_rows_make_no_packs(way: Callable[..., Packs]) -> None:
    assert len(way(np.empty(0, np.int32), 8)) == 0
