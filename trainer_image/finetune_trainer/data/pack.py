"""Packing: which rows are one sample, so that all samples have about as many tokens.

`prepare` packs all rows of a split at once, because the last packs of a portion would not be full. `splits` stores
the packs, `datasets` reads them. Both algorithms return packs, each a list of pieces (row, start, end), and are
deterministic.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Piece(NamedTuple):
    """Tokens ``start`` to ``end`` of a row of the split."""

    row: int
    start: int
    end: int


@dataclass(frozen=True)
class Packs:
    """All packs of a split, as arrays because there may be as many pieces as rows: pack i has the pieces
    ``offsets[i]:offsets[i + 1]``."""

    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> list[Piece]:
        if not 0 <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        inside = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        columns = (self.rows[inside].tolist(), self.starts[inside].tolist(), self.ends[inside].tolist())
        return [Piece(*values) for values in zip(*columns, strict=True)]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[packs]: tokens of each pack."""
        total = np.concatenate([[0], np.cumsum(self.ends.astype(np.int64) - self.starts)])
        lengths: npt.NDArray[np.int64] = np.diff(total[self.offsets])
        return lengths


def bfd(lengths: npt.NDArray[np.int32], cutoff: int) -> Packs:
    """Best-fit decreasing: whole rows, longest first, each into the fullest pack that has room for it.

    ``lengths`` are the tokens of each row, at most ``cutoff``. Raises ValueError."""
    if len(lengths) and int(lengths.max()) > cutoff:
        raise ValueError(f"a row has {int(lengths.max())} tokens, and a pack at most {cutoff}: cut rows first")
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    pack_of = np.empty(len(order), np.int64)
    with_room: list[list[int]] = [[] for _ in range(cutoff + 1)]
    # Bit r is set if a pack has room for exactly r tokens: the best fit is the lowest set bit at or above the length.
    # Integer arithmetic finds it with a few machine instructions per 64 candidates.
    rooms = count = 0
    for place, length in enumerate(lengths[order].tolist()):
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, pack = cutoff, count
            count += 1
        pack_of[place] = pack
        with_room[room - length].append(pack)
        rooms |= 1 << (room - length)
    by_pack = np.argsort(pack_of, kind="stable")
    rows = order[by_pack]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pack_of, minlength=count))])
    return Packs(offsets.astype(np.int64), rows, np.zeros(len(rows), np.int32), lengths[rows].astype(np.int32))


def wrapped(lengths: npt.NDArray[np.int32], cutoff: int) -> Packs:
    """All rows as a single stream, cut every ``cutoff`` tokens. The last pack holds the rest; a rest of a single token
    is dropped, because no token precedes it from which it could be predicted."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if total % cutoff == 1:
        total -= 1
        ends = np.minimum(ends, total)
        lengths = np.diff(ends, prepend=0).astype(np.int32)
    edges = np.unique(np.concatenate([[0, total], ends, np.arange(0, total, cutoff)]))
    first, last = edges[:-1], edges[1:]
    rows = np.searchsorted(ends, first, side="right")
    row_starts = (ends - lengths)[rows] if len(rows) else rows
    offsets = np.concatenate([[0], np.cumsum(np.bincount(first // cutoff))])
    return Packs(
        offsets.astype(np.int64), rows, (first - row_starts).astype(np.int32), (last - row_starts).astype(np.int32)
    )
