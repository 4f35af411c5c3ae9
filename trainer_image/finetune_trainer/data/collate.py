"""Rows -> one padded micro-batch of tensors.

Given to the trainer as its collator. Padding is seen by nothing: it has no attention and no label.
"""

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch

from finetune_trainer.data.tokenize import IGNORED


class TokenizedRow(TypedDict):
    """One row as the dataset holds it."""

    input_ids: list[int]
    labels: list[int]


def collator(pad_id: int) -> Callable[[Sequence[TokenizedRow]], dict[str, torch.Tensor]]:
    """Pad on the right to the longest row of the micro-batch."""

    def collate(rows: Sequence[TokenizedRow]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), width)
        batch = {
            "input_ids": torch.full(shape, pad_id, dtype=torch.long),
            "labels": torch.full(shape, IGNORED, dtype=torch.long),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
        }
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            batch["input_ids"][index, :length] = torch.tensor(row["input_ids"])
            batch["labels"][index, :length] = torch.tensor(row["labels"])
            batch["attention_mask"][index, :length] = 1
        return batch

    return collate
