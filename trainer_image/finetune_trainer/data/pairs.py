"""What fills the places of a batch in stages rm and dpo: pairs of answers to one prompt, the better and the worse.

Made by workflows over a split of the prepared data. Pair i is rows 2i (chosen) and 2i + 1 (rejected): `prepare` keeps
both or leaves out both, so they are neighbours whatever was drawn, split off or mixed.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from finetune_trainer.data import collate
from finetune_trainer.data.row import Row
from finetune_trainer.data.store import Split


class Pairs:
    """The pairs of one split, by number."""

    def __init__(self, split: Split) -> None:
        if len(split) % 2:
            raise ValueError(f"a split of {len(split)} rows holds no pairs")
        self.split = split
        self.lengths: npt.NDArray[np.integer] = split.lengths.reshape(-1, 2).max(axis=1)
        """Tokens of each pair's longer row: both are padded to it."""

    def __len__(self) -> int:
        return len(self.lengths)

    def pair(self, item: int) -> tuple[Row, Row]:
        """(chosen, rejected)."""
        return self.split.row(2 * item), self.split.row(2 * item + 1)

    def collator(self, pad_id: int, _attention: str) -> Callable[[Sequence[int]], collate.Batch]:
        """Pairs -> one micro-batch, whose first half are the chosen rows and whose second half the rejected ones, in
        the same order."""

        def batch(items: Sequence[int]) -> collate.Batch:
            pairs = [self.pair(item) for item in items]
            return collate.padded([row for side in (0, 1) for row in (pair[side] for pair in pairs)], pad_id)

        return batch
