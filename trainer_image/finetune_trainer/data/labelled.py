"""What fills the places of a batch in stage kto: an answer, whether it is wanted, and a mismatched one beside it.

Made by workflows over a split of the prepared data. KTO's reference point is the divergence of policy and reference on
answers to other prompts (Ethayarajh et al., 2024, section 4.1): each row gets the answer of the row before it in the
global batch. So an item is two numbers, (row, previous row), chosen by whoever puts global batches together.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from finetune_trainer.data import collate
from finetune_trainer.data.row import Row
from finetune_trainer.data.store import Split


class Labelled:
    """The rows of one split, by number."""

    def __init__(self, split: Split, cutoff: int = 0) -> None:
        """``cutoff``: training.cutoffLength, which also ends mismatched rows; 0: nothing does."""
        self.split, self.cutoff = split, cutoff
        self.lengths: npt.NDArray[np.integer] = split.lengths
        """Tokens of each row."""

    def __len__(self) -> int:
        return len(self.lengths)

    def collator(self, pad_id: int, _attention: str) -> Callable[[Sequence[tuple[int, int]]], collate.Batch]:
        """(row, previous row) of each place -> one micro-batch; what begins with ``kl_`` are the mismatched rows."""

        def batch(items: Sequence[tuple[int, int]]) -> collate.Batch:
            rows = [self.split.row(row) for row, _ in items]
            others = [self.split.row(previous) for _, previous in items]
            made = collate.padded(rows, pad_id)
            made["desirable"] = torch.tensor([row.desirable for row in rows])
            pairs = zip(rows, others, strict=True)
            beside = collate.padded([mismatched(row, other, self.cutoff) for row, other in pairs], pad_id)
            del beside["tokens"]  # nothing is learnt from them
            return made | {f"kl_{name}": values for name, values in beside.items()}

        return batch


def mismatched(row: Row, other: Row, cutoff: int) -> Row:
    """The prompt of ``row`` with the answer of ``other``."""
    prompt = row.input_ids[: row.answer_start]
    moved = len(prompt) - other.answer_start
    ids = prompt + other.input_ids[other.answer_start :]
    end = cutoff or len(ids)
    spans = [(start + moved, min(stop + moved, end)) for start, stop in other.trained if start + moved < end]
    return Row(ids[:end], spans)
