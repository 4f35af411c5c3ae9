"""Which rows share a row of the batch, so that next to nothing is padded.

Called by `prepare` over all rows of a split at once, since packing portions pads the end of each; kept by `store`,
read by `collate`. Both ways give the same: packs, each a list of pieces (row, start, end). Deterministic.
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
    """All packs of a split. Arrays, because there may be as many pieces as rows: pack i is pieces
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
        """Tokens of each pack."""
        total = np.concatenate([[0], np.cumsum(self.ends.astype(np.int64) - self.starts)])
        lengths: npt.NDArray[np.int64] = np.diff(total[self.offsets])
        return lengths


def bfd(lengths: npt.NDArray[np.int32], cutoff: int) -> Packs:
    """Whole rows, longest first, each into the fullest pack that still has room for it (best-fit decreasing)."""
    if len(lengths) and int(lengths.max()) > cutoff:
        raise ValueError(f"a row of {int(lengths.max())} tokens doesn't fit into packs of {cutoff}: cut rows first")
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    pack_of = np.empty(len(order), np.int64)
    with_room: list[list[int]] = [[] for _ in range(cutoff + 1)]
    # Bit r is set where a pack has room for exactly r tokens: the best fit is the lowest set bit from the length on,
    # which whole-number arithmetic finds in a few machine instructions for 64 candidates each.
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
    """All rows as one stream, cut every ``cutoff`` tokens. The last pack holds what is left; a single token is not
    left, because there is nothing to predict it from."""
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
