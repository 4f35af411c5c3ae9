"""Which rows are trained on, and which are kept for evaluation: maxSamples, splitFraction and mixing, as arithmetic.

Called by ``build``: `by_block` when all rows are checked and counted, the rest when they are tokenized. A *group* is
what one row of a file became, which where history is split are several tokenized rows: groups are drawn whole, so that
no part of a conversation is in two splits.
Everything is a function of the seed and the counts alone.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from finetune_api.data import Mixing

from finetune_trainer.errors import InvalidData

Indices = npt.NDArray[np.int64]
CHUNK = 1 << 16


class Picks(NamedTuple):
    """Rows in the order in which they are written: row ``rows[i]`` of data set ``parts[i]``."""

    parts: npt.NDArray[np.int16]
    rows: Indices


def sample(rows: int, most: int, seed: int, number: int) -> Indices:
    """The rows of data set ``number`` that are used, in the order of the file."""
    if rows <= most:
        return np.arange(rows, dtype=np.int64)
    return np.sort(_random("sample", seed, number).permutation(rows)[:most])


def by_block(counts: Sequence[int], most: int, seed: int, number: int) -> Iterator[list[int]]:
    """The same block by block: ``counts`` has how many rows each has, and the result which of them are used."""
    drawn = sample(sum(counts), most, seed, number)
    start = 0
    for count in counts:
        first, last = np.searchsorted(drawn, (start, start + count))
        yield (drawn[first:last] - start).tolist()
        start += count


def hold_out(used: Sequence[Indices], fraction: float, seed: int) -> tuple[list[Indices], list[Indices]]:
    """(to train on, to evaluate on), drawn from each data set alike; at least one of each in all."""
    total = sum(map(len, used))
    if total < 2:
        raise InvalidData(
            f"evaluation.splitFraction needs at least two rows, one to train on and one to evaluate on; here: {total}"
        )
    held = min(max(1, round(total * fraction)), total - 1)
    drawn = np.zeros(total, bool)
    drawn[_random("split", seed, 0).permutation(total)[:held]] = True
    pieces = np.split(drawn, np.cumsum([len(part) for part in used])[:-1])
    return (
        [part[~out] for part, out in zip(used, pieces, strict=True)],
        [part[out] for part, out in zip(used, pieces, strict=True)],
    )


def mix(used: Sequence[Indices], mixing: Mixing, weights: Sequence[float], seed: int) -> tuple[Indices, Indices]:
    """(data set, group) of each place."""
    if mixing == "concatenate":
        sets = np.repeat(np.arange(len(used)), [len(part) for part in used])
        return sets, np.concatenate([np.empty(0, np.int64), *used])
    counts = np.array([len(part) for part in used], np.int64)
    random = _random("mix", seed, 0)
    share = np.array(weights, float) / sum(weights)
    drawn = np.empty(0, np.int64)
    while True:
        drawn = np.concatenate([drawn, random.choice(len(used), size=max(CHUNK, len(drawn)), p=share)])
        # Where each data set hands out its last row for the first time.
        last = [_place_of(drawn == number, count) for number, count in enumerate(counts)]
        known = [place for place in last if place is not None]
        if mixing == "interleaveUnder" and known:
            stop = min(known) + 1
            break
        if mixing == "interleaveOver" and len(known) == len(used):
            stop = max(known) + 1
            break
    drawn = drawn[:stop]
    groups = np.empty(stop, np.int64)
    for number, part in enumerate(used):
        mine = np.flatnonzero(drawn == number)
        order = _random("order", seed, number).permutation(part)
        groups[mine] = order[np.arange(len(mine)) % len(part)]
    return drawn, groups


def expand(sets: Indices, groups: Indices, sizes: Sequence[npt.NDArray[np.int32]]) -> Picks:
    """The tokenized rows of drawn groups. ``sizes`` has, for each data set, how many rows each group became."""
    starts = [np.concatenate([[0], np.cumsum(size, dtype=np.int64)]) for size in sizes]
    first, count = np.empty(len(sets), np.int64), np.empty(len(sets), np.int64)
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        mine = sets == number
        first[mine], count[mine] = start[groups[mine]], size[groups[mine]]
    offsets = np.cumsum(count) - count
    rows = np.repeat(first - offsets, count) + np.arange(int(count.sum()))
    return Picks(np.repeat(sets, count).astype(np.int16), rows)


def _place_of(marks: npt.NDArray[np.bool_], nth: int) -> int | None:
    places = np.flatnonzero(marks)
    return int(places[nth - 1]) if len(places) >= nth else None


def _random(what: str, seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, number, *what.encode()]))
