"""Rows -> a micro-batch: one stream of tokens, document after document, without padding.

Called by `datasets`. All stages train and evaluate on this one shape, packed or not. `model.stream` hands it to a model
in the shape that its attention needs. What describes the stream is computed here, on the host, once per micro-batch:
nothing has to wait for a GPU to learn a length.

| key | shape | content |
| --- | --- | --- |
| input_ids | [1, tokens] | the documents, one after the other |
| labels | [1, tokens] | aligned with input_ids; none for a document's first token: another document precedes it |
| position_ids | [1, tokens] | position in the document |
| document_ids | [tokens] | number of the document |
| bounds | [documents + 1] | where each document begins, and where the last one ends; int32, as kernels want it |
| lengths | tuple of ints | tokens of each document; stays on the host |
"""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import torch

from finetune_trainer.data.row import IGNORED, Row

Batch = dict[str, Any]
"""Tensors by name, and ``lengths``. A stage adds what else it needs: tensors, or another stream."""


def stream(rows: Sequence[Row]) -> Batch:
    """A micro-batch of these documents."""
    lengths = tuple(len(row.input_ids) for row in rows)
    labels = chain.from_iterable((IGNORED, *row.labels[1:]) for row in rows)
    return {
        "input_ids": torch.tensor([list(chain.from_iterable(row.input_ids for row in rows))], dtype=torch.long),
        "labels": torch.tensor([list(labels)], dtype=torch.long),
        "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        "document_ids": torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths)),
        "bounds": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        "lengths": lengths,
    }
