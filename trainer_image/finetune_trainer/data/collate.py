"""Rows -> one micro-batch of tensors, in the three shapes that implementations of attention are fast with.

Called by `items`. Padding is seen by nothing and has no label. Where several documents share a row, transformers keeps
them apart by position_ids that begin again at 0, and only if there is no attention_mask and no cache: with either it
would silently let them see each other. ``tokens`` counts what is no padding; the engine takes it out again.
"""

from collections.abc import Sequence

import torch

from finetune_trainer.data.row import IGNORED, Row

Batch = dict[str, torch.Tensor]


def padded(rows: Sequence[Row], pad_id: int) -> Batch:
    """A document a row, padded on the right to the longest."""
    batch = _empty(len(rows), max(len(row.input_ids) for row in rows), pad_id)
    batch["attention_mask"] = torch.zeros_like(batch["input_ids"])
    for index, row in enumerate(rows):
        _put(batch, index, 0, row)
        batch["attention_mask"][index, : len(row.input_ids)] = 1
    return batch


def packed(packs: Sequence[Sequence[Row]], pad_id: int) -> Batch:
    """Several documents a row, for sdpa and eager: a flat row would cost them the square of the whole micro-batch.
    Padding is a document of its own."""
    lengths = [sum(len(row.input_ids) for row in pack) for pack in packs]
    batch = _empty(len(packs), max(lengths), pad_id)
    batch["position_ids"] = torch.zeros_like(batch["input_ids"])
    for index, (pack, length) in enumerate(zip(packs, lengths, strict=True)):
        at = 0
        for row in pack:
            at = _put(batch, index, at, row)
        batch["position_ids"][index] = _positions([*(len(row.input_ids) for row in pack), max(lengths) - length])
    return batch


def flat(rows: Sequence[Row]) -> Batch:
    """All documents of the micro-batch end to end, for flash attention, which takes their lengths from position_ids."""
    lengths = [len(row.input_ids) for row in rows]
    batch = _empty(1, sum(lengths), 0)
    at = 0
    for row in rows:
        at = _put(batch, 0, at, row)
    batch["position_ids"] = _positions(lengths).unsqueeze(0)
    return batch


def _empty(rows: int, width: int, pad_id: int) -> Batch:
    return {
        "input_ids": torch.full((rows, width), pad_id, dtype=torch.long),
        "labels": torch.full((rows, width), IGNORED, dtype=torch.long),
        "tokens": torch.zeros(1, dtype=torch.long),
    }


def _put(batch: Batch, index: int, at: int, row: Row) -> int:
    """Write a document; the place after it. Its first token has no label: nothing that it may see comes before it."""
    end = at + len(row.input_ids)
    batch["input_ids"][index, at:end] = torch.tensor(row.input_ids, dtype=torch.long)
    batch["labels"][index, at + 1 : end] = torch.tensor(row.labels[1:], dtype=torch.long)
    batch["tokens"] += end - at
    return end


def _positions(lengths: Sequence[int]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])
