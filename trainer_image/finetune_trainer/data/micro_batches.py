"""How the rows of a step are dealt to ranks and micro-batches.

A loss is a sum over the global batch, so how rows are dealt does not change it. It is a function of the rows and the
number of ranks, and every rank gets the same number of micro-batches: ranks exchange gradients, and with sharded
weights they gather weights together.
"""

import heapq
from collections.abc import Sequence

from finetune_api.micro_batch import MicroBatch


def deal(tokens: Sequence[int], micro_batch: MicroBatch, ranks: int) -> list[list[list[int]]]:
    """[ranks][micro-batches][rows]: indices into ``tokens``, which has the tokens of each row, the longest row first.
    The number of rows is a multiple of ``ranks``. The first micro-batch is the largest, so that a lack of memory shows
    at once."""
    if micro_batch.unit == "tokens":
        return by_tokens(tokens, micro_batch.size, ranks)
    shares = [range(rank, len(tokens), ranks) for rank in range(ranks)]
    size = micro_batch.size
    return [[list(share[start : start + size]) for start in range(0, len(share), size)] for share in shares]


def by_tokens(tokens: Sequence[int], limit: int, ranks: int, at_least: int = 1) -> list[list[list[int]]]:
    """As `deal`, in as few micro-batches as the limit of tokens allows, but ``at_least`` so many for each rank. They
    have nearly the same number of tokens (longest processing time first; Graham, 1969), so ranks wait little for each
    other."""
    if not tokens:
        return [[] for _ in range(ranks)]
    longest_first = sorted(range(len(tokens)), key=lambda row: (-tokens[row], row))
    limit = max(limit, tokens[longest_first[0]])
    most = len(tokens) // ranks
    alone = sum(2 * size > limit for size in tokens)
    """Rows of which no two fit together."""
    count = max(at_least, -(-max(-(-sum(tokens) // limit), alone) // ranks))
    while True:
        count = min(count, most)
        filled = _fill(tokens, longest_first, count * ranks, limit)
        if filled is not None or count == most:
            break
        count += max(1, count // 16)
    assert filled is not None, "each row alone fits"
    return [filled[rank::ranks] for rank in range(ranks)]


def _fill(tokens: Sequence[int], longest_first: Sequence[int], count: int, limit: int) -> list[list[int]] | None:
    """The rows in ``count`` micro-batches, the fullest first, each row in the emptiest. None if one exceeds the
    limit."""
    emptiest = [(0, number) for number in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for row in longest_first:
        size, number = emptiest[0]
        if size + tokens[row] > limit:
            return None
        rows[number].append(row)
        heapq.heapreplace(emptiest, (size + tokens[row], number))
    return [rows[number] for _, number in sorted(emptiest, key=lambda each: (-each[0], each[1]))]
