"""The rows of a step are dealt to ranks and micro-batches: all of them, to all ranks alike, within the limit."""

from finetune_api.micro_batch import MicroBatch
from finetune_trainer.data.micro_batches import by_tokens, deal
from hypothesis import given
from hypothesis import strategies as st

RANKS = st.sampled_from([1, 2, 3, 8])
LENGTHS = st.lists(st.integers(1, 4096), min_size=1, max_size=40)


def step_of(lengths: list[int], ranks: int) -> list[int]:
    """Lengths of the rows of a step, the longest first; ranks share them evenly."""
    return sorted(lengths * ranks, reverse=True)


@given(LENGTHS, RANKS, st.integers(1, 20_000))
def test_every_row_is_dealt_once_and_no_micro_batch_exceeds_the_tokens(
    lengths: list[int], ranks: int, limit: int
) -> None:
    """A row with more tokens than the limit is the exception: it raises the limit to its own length."""
    tokens = step_of(lengths, ranks)
    dealt = deal(tokens, MicroBatch(limit, "tokens"), ranks)
    assert len(dealt) == ranks
    assert len({len(share) for share in dealt}) == 1
    assert sorted(row for share in dealt for batch in share for row in batch) == list(range(len(tokens)))
    sizes = [sum(tokens[row] for row in batch) for share in dealt for batch in share]
    assert min(sizes) >= 1
    assert max(sizes) <= max(limit, tokens[0])


@given(LENGTHS, RANKS, st.integers(1, 20_000))
def test_micro_batches_by_tokens_are_balanced_over_ranks(lengths: list[int], ranks: int, limit: int) -> None:
    """Two ranks differ by at most a row: the emptiest always gets the next."""
    tokens = step_of(lengths, ranks)
    for batches in zip(*by_tokens(tokens, limit, ranks), strict=True):
        sizes = [sum(tokens[row] for row in batch) for batch in batches]
        assert max(sizes) - min(sizes) <= tokens[0]


def test_micro_batches_by_tokens_are_few_and_full() -> None:
    """1,024 rows of 100 to 355 tokens fill micro-batches of 4,096 tokens to more than nine tenths on average."""
    tokens = sorted(4 * list(range(100, 356)), reverse=True)
    dealt = by_tokens(tokens, 4096, 2)
    assert sum(tokens) / (4096 * sum(map(len, dealt))) > 0.9


def test_a_step_of_many_rows_that_pair_badly_is_dealt() -> None:
    """Only two of three thirds fit: the bound by the sum of tokens is far from what is needed."""
    dealt = by_tokens([1366] * 4096, 4096, 8)
    assert {len(batch) for share in dealt for batch in share} <= {1, 2}


@given(LENGTHS, RANKS, st.integers(1, 8))
def test_micro_batches_by_rows_have_as_many_rows_the_longest_first(lengths: list[int], ranks: int, size: int) -> None:
    tokens = step_of(lengths, ranks)
    dealt = deal(tokens, MicroBatch(size), ranks)
    assert sorted(row for share in dealt for batch in share for row in batch) == list(range(len(tokens)))
    for share in dealt:
        assert all(len(batch) == size for batch in share[:-1])
        assert share[0][0] == min(row for batch in share for row in batch)


@given(LENGTHS, st.integers(1, 20_000), st.integers(1, 50))
def test_a_rank_can_be_given_more_micro_batches_than_it_needs(lengths: list[int], limit: int, at_least: int) -> None:
    """Ranks whose rows differ take the number that the fullest of them needs, as far as each has rows."""
    (share,) = by_tokens(sorted(lengths, reverse=True), limit, 1, at_least)
    assert len(share) >= min(at_least, len(lengths))
    assert all(share)
