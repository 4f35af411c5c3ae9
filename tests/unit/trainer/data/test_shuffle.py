"""The shuffle of numpy is that of Python's ``random``."""

import random

import pytest
from finetune_trainer.data.shuffle import ONE_BY_ONE, WORDS, permutation
from hypothesis import given
from hypothesis import strategies as st


def shuffled(length: int, seed: str) -> list[int]:
    numbers = list(range(length))
    random.Random(seed).shuffle(numbers)
    return numbers


@given(st.integers(0, 3 * ONE_BY_ONE), st.text(max_size=20))
def test_a_permutation_is_that_of_python(length: int, seed: str) -> None:
    assert permutation(length, seed).tolist() == shuffled(length, seed)


@pytest.mark.parametrize("length", [ONE_BY_ONE, ONE_BY_ONE + 1, ONE_BY_ONE + 2, WORDS - 1, WORDS, WORDS + 1, 300_000])
def test_a_permutation_of_many_rows_is_that_of_python(length: int) -> None:
    """The edges are those where the number of bits changes, and where words are drawn again."""
    assert permutation(length, f"order:42:{length}").tolist() == shuffled(length, f"order:42:{length}")
