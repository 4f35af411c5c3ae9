"""What fills the places of a batch: a row each, or a pack of rows where the job packs.

Made by workflows over a split of the prepared data; order, steps and batch sizes count items. Nothing is held in memory
but lengths: tokens are read when a batch asks for them.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from finetune_trainer.data import collate
from finetune_trainer.data.row import Row
from finetune_trainer.data.store import Split

Packing = Literal["none", "bfd", "wrapped"]


class Items:
    """The items of one split, by number."""

    def __init__(self, split: Split, packing: Packing) -> None:
        self.split = split
        # A split may come without packs though the job packs: evaluation data may, since it pads at no lasting cost.
        self.packing: Packing = "none" if split.packs is None else packing
        self.lengths: npt.NDArray[np.integer] = split.lengths if split.packs is None else split.packs.lengths
        """Tokens of each item."""

    def __len__(self) -> int:
        return len(self.lengths)

    def documents(self, item: int) -> list[Row]:
        """What shares the item: documents that must not see each other, or with ``wrapped`` one piece of a stream."""
        if self.packing == "none":
            return [self.split.row(item)]
        assert self.split.packs is not None
        pieces = [cut_out(self.split.row(row), start, end) for row, start, end in self.split.packs[item]]
        return [joined(pieces)] if self.packing == "wrapped" else pieces

    def collator(self, pad_id: int, attention: str) -> Callable[[Sequence[int]], dict[str, torch.Tensor]]:
        """Items -> one micro-batch, for an implementation of attention as transformers names it."""

        def batch(items: Sequence[int]) -> dict[str, torch.Tensor]:
            documents = [self.documents(item) for item in items]
            if self.packing != "bfd":
                return collate.padded([row for (row,) in documents], pad_id)
            if "flash" in attention:
                return collate.flat([row for pack in documents for row in pack])
            return collate.packed(documents, pad_id)

        return batch


def cut_out(row: Row, start: int, end: int) -> Row:
    """A piece of a row as a row."""
    spans = [(max(first, start) - start, min(last, end) - start) for first, last in row.trained]
    return Row(row.input_ids[start:end], [(first, last) for first, last in spans if first < last])


def joined(rows: Sequence[Row]) -> Row:
    """Rows as one, end to end: its labels let each learn its first token from the end of the one before."""
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for row in rows:
        spans += [(start + len(ids), end + len(ids)) for start, end in row.trained]
        ids += row.input_ids
    return Row(ids, spans)
