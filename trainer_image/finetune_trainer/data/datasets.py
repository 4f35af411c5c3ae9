"""The rows of a split as the stages train them: sequences, pairs, labelled answers or prompts.

The workflow of a stage wraps the splits of the prepared data in its dataset. The sampler, the number of steps and the
batch sizes count the samples of the dataset; a sample is a row, a pack of rows, or a pair of rows. Only lengths are in
memory: tokens are read when a batch needs them.

| stage | dataset | a sample |
| --- | --- | --- |
| pt, sft | `TokenSequences` | a row, or a pack of rows |
| rm, dpo | `Pairs` | the chosen and the rejected row |
| kto | `LabelledAnswers` | a row, batched with the answer of another row |
| ppo | `Prompts` | a prompt |
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from finetune_trainer.data import collate
from finetune_trainer.data.collate import Batch
from finetune_trainer.data.row import Row
from finetune_trainer.data.splits import Split

Packing = Literal["none", "bfd", "wrapped"]
Index = int | tuple[int, int]
"""A sample of a dataset: its number, or in stage kto (row, row whose answer it borrows)."""
MISMATCHED = "mismatched"
"""Key of a batch of stage kto."""


class Dataset(Protocol):
    """What training and evaluation need of a stage's data."""

    split: Split
    lengths: npt.NDArray[np.integer]
    """[samples]: tokens of the longest row of each sample, by which samples are sorted."""
    tokens: npt.NDArray[np.integer]
    """[samples]: tokens of all rows of each sample, which fill a micro-batch."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[Any], /) -> Batch:
        """The micro-batch of these samples. Indices are numbers, or pairs for `LabelledAnswers`: see `Index`."""


class TokenSequences:
    """Stages pt and sft: rows, or packs of rows if the job packs."""

    def __init__(self, split: Split, packing: Packing) -> None:
        self.split = split
        # Evaluation data may have no packs although the job packs.
        self.packing: Packing = "none" if split.packs is None else packing
        self.lengths: npt.NDArray[np.integer] = split.lengths if split.packs is None else split.packs.lengths
        self.tokens: npt.NDArray[np.integer] = self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def documents(self, sample: int) -> list[Row]:
        """The documents of a sample, which must not see each other; with ``wrapped`` a single piece of the stream."""
        if self.packing == "none":
            return [self.split.row(sample)]
        assert self.split.packs is not None
        pieces = [slice_row(self.split.row(row), start, end) for row, start, end in self.split.packs[sample]]
        return [concatenate(pieces)] if self.packing == "wrapped" else pieces

    def batch(self, samples: Sequence[int]) -> Batch:
        """See `Dataset`."""
        return collate.stream([document for sample in samples for document in self.documents(sample)])


class Pairs:
    """Stages rm and dpo: a chosen and a rejected answer to a prompt. Pair i is rows 2i (chosen) and 2i + 1 (rejected):
    `prepare` keeps or drops both, so they are neighbours after sampling, splitting and mixing, too."""

    def __init__(self, split: Split) -> None:
        if len(split) % 2:
            raise ValueError(f"a split of pairs has an even number of rows, and this split has {len(split)}")
        self.split = split
        self.lengths: npt.NDArray[np.integer] = split.lengths.reshape(-1, 2).max(axis=1)
        """[pairs]: tokens of the longer row."""
        self.tokens: npt.NDArray[np.integer] = split.lengths.reshape(-1, 2).sum(axis=1, dtype=np.int64)
        """[pairs]: tokens of both rows."""

    def __len__(self) -> int:
        return len(self.lengths)

    def pair(self, sample: int) -> tuple[Row, Row]:
        """(chosen, rejected)."""
        return self.split.row(2 * sample), self.split.row(2 * sample + 1)

    def batch(self, samples: Sequence[int]) -> Batch:
        """See `Dataset`. The first half of the documents is the chosen rows, the second half the rejected rows, in the
        same order."""
        pairs = [self.pair(sample) for sample in samples]
        return collate.stream([pair[side] for side in (0, 1) for pair in pairs])


class LabelledAnswers:
    """Stage kto: rows with a label, each batched with the answer of another row.

    KTO's reference point is the divergence between policy and reference on mismatched answers (Ethayarajh et al., 2024,
    section 4.1): each row gets the answer of the row before it in the global batch. So an index is (row, previous row),
    and the trainer forms both when it forms the global batch.
    """

    def __init__(self, split: Split, cutoff: int = 0) -> None:
        """``cutoff``: training.cutoffLength, which limits mismatched rows, too; 0: no limit."""
        self.split, self.cutoff = split, cutoff
        self.lengths: npt.NDArray[np.integer] = split.lengths
        self.tokens: npt.NDArray[np.integer] = self.lengths
        """Mismatched rows do not count: they have forward passes of their own, without gradients."""

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Sequence[tuple[int, int]]) -> Batch:
        """See `Dataset`. Key `MISMATCHED` is a stream of its own: the mismatched rows, which are not trained."""
        rows = [self.split.row(row) for row, _ in indices]
        pairs = zip(rows, (self.split.row(row) for _, row in indices), strict=True)
        return collate.stream(rows) | {
            "desirable": torch.tensor([row.desirable for row in rows]),
            MISMATCHED: collate.stream([mismatched(row, other, self.cutoff) for row, other in pairs]),
        }


class Prompts:
    """Stage ppo: prompts, each as inference gets it. None of their tokens is trained. Training answers single prompts
    and batches the answers; the evaluation reads batches of prompts."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.lengths: npt.NDArray[np.integer] = split.lengths
        self.tokens: npt.NDArray[np.integer] = self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def prompt(self, sample: int) -> list[int]:
        """Token ids, up to where the answer begins."""
        return self.split.row(sample).input_ids

    def batch(self, samples: Sequence[int]) -> Batch:
        """See `Dataset`."""
        return collate.stream([self.split.row(sample) for sample in samples])


def slice_row(row: Row, start: int, end: int) -> Row:
    """Tokens ``start`` to ``end`` of a row."""
    spans = [(max(first, start) - start, min(last, end) - start) for first, last in row.trained]
    return Row(row.input_ids[start:end], [(first, last) for first, last in spans if first < last])


def concatenate(rows: Sequence[Row]) -> Row:
    """Rows as a single row. Its labels train the first token of each row from the end of the row before it."""
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for row in rows:
        spans += [(start + len(ids), end + len(ids)) for start, end in row.trained]
        ids += row.input_ids
    return Row(ids, spans)


def mismatched(row: Row, other: Row, cutoff: int) -> Row:
    """The prompt of ``row`` with the answer of ``other``."""
    prompt = row.input_ids[: row.answer_start]
    offset = len(prompt) - other.answer_start
    ids = prompt + other.input_ids[other.answer_start :]
    limit = cutoff or len(ids)
    spans = [(start + offset, min(end + offset, limit)) for start, end in other.trained if start + offset < limit]
    return Row(ids[:limit], spans)
