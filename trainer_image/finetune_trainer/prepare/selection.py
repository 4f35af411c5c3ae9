"""Which rows are trained, and which are held out for evaluation: maxSamples, splitFraction and mixing, as arithmetic.

`build_data` calls `sample_by_block` after all rows are checked and counted, and the other functions after they are
tokenized. A *group* is the tokenized rows of a row of a file: several if history is split. Groups are drawn as a whole,
so that no conversation is in two splits. All results depend on the seed and the counts alone.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from finetune_api.data import Mixing

from finetune_trainer.errors import InvalidData

Indices = npt.NDArray[np.int64]
CHUNK = 1 << 16


class DrawnRows(NamedTuple):
    """Rows in the order in which they are written: row ``rows[i]`` of data set ``datasets[i]``."""

    datasets: npt.NDArray[np.int16]
    rows: Indices


def sample(rows: int, limit: int, seed: int, number: int) -> Indices:
    """At most ``limit`` of the rows of data set ``number``, in the order of the file."""
    if rows <= limit:
        return np.arange(rows, dtype=np.int64)
    return np.sort(_random("sample", seed, number).permutation(rows)[:limit])


def sample_by_block(counts: Sequence[int], limit: int, seed: int, number: int) -> Iterator[list[int]]:
    """`sample`, as the sampled rows of each block. ``counts``: rows of each block."""
    drawn = sample(sum(counts), limit, seed, number)
    start = 0
    for count in counts:
        first, last = np.searchsorted(drawn, (start, start + count))
        yield (drawn[first:last] - start).tolist()
        start += count


def hold_out(used: Sequence[Indices], fraction: float, seed: int) -> tuple[list[Indices], list[Indices]]:
    """(for training, for evaluation), drawn from all data sets with the same probability; at least one row each. Raises
    InvalidData."""
    total = sum(map(len, used))
    if total < 2:
        raise InvalidData(
            f"evaluation.splitFraction needs at least two rows, for training and for evaluation, and the data has"
            f" {total}. Add rows, or remove splitFraction"
        )
    held_out = min(max(1, round(total * fraction)), total - 1)
    drawn = np.zeros(total, bool)
    drawn[_random("split", seed, 0).permutation(total)[:held_out]] = True
    pieces = np.split(drawn, np.cumsum([len(part) for part in used])[:-1])
    return (
        [part[~out] for part, out in zip(used, pieces, strict=True)],
        [part[out] for part, out in zip(used, pieces, strict=True)],
    )


def mix(used: Sequence[Indices], mixing: Mixing, weights: Sequence[float], seed: int) -> tuple[Indices, Indices]:
    """(data set, group) for each position of the training data. ``used``: groups of each data set."""
    if mixing == "concatenate":
        datasets = np.repeat(np.arange(len(used)), [len(part) for part in used])
        return datasets, np.concatenate([np.empty(0, np.int64), *used])
    counts = np.array([len(part) for part in used], np.int64)
    random = _random("mix", seed, 0)
    share = np.array(weights, float) / sum(weights)
    drawn = np.empty(0, np.int64)
    while True:
        drawn = np.concatenate([drawn, random.choice(len(used), size=max(CHUNK, len(drawn)), p=share)])
        # Position at which each data set gives its last row for the first time.
        last = [_position(drawn == number, count) for number, count in enumerate(counts)]
        known = [position for position in last if position is not None]
        if mixing == "interleaveUnder" and known:
            stop = min(known) + 1
            break
        if mixing == "interleaveOver" and len(known) == len(used):
            stop = max(known) + 1
            break
    drawn = drawn[:stop]
    groups = np.empty(stop, np.int64)
    for number, part in enumerate(used):
        positions = np.flatnonzero(drawn == number)
        order = _random("order", seed, number).permutation(part)
        groups[positions] = order[np.arange(len(positions)) % len(part)]
    return drawn, groups


def expand(datasets: Indices, groups: Indices, sizes: Sequence[npt.NDArray[np.int32]]) -> DrawnRows:
    """The tokenized rows of drawn groups. ``sizes``: for each data set, the number of rows of each group."""
    starts = [np.concatenate([[0], np.cumsum(size, dtype=np.int64)]) for size in sizes]
    first, count = np.empty(len(datasets), np.int64), np.empty(len(datasets), np.int64)
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        chosen = datasets == number
        first[chosen], count[chosen] = start[groups[chosen]], size[groups[chosen]]
    offsets = np.cumsum(count) - count
    rows = np.repeat(first - offsets, count) + np.arange(int(count.sum()))
    return DrawnRows(np.repeat(datasets, count).astype(np.int16), rows)


def _position(mask: npt.NDArray[np.bool_], nth: int) -> int | None:
    """Position of the nth true value."""
    positions = np.flatnonzero(mask)
    return int(positions[nth - 1]) if len(positions) >= nth else None


def _random(purpose: str, seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, number, *purpose.encode()]))
