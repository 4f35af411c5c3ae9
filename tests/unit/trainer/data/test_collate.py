"""Micro-batches: tokens, labels, and where documents begin."""

from pathlib import Path

import pytest
import torch
from finetune_trainer.data import collate, pack
from finetune_trainer.data.datasets import Packing, TokenSequences, concatenate, slice_row
from finetune_trainer.data.row import IGNORED, Row
from finetune_trainer.data.splits import ShardWriter, open_split, write_packs

ONE, TWO, THREE = Row([1, 2, 3], [(0, 3)]), Row([4, 5], [(1, 2)]), Row([6, 7, 8, 9], [(2, 4)])
X = IGNORED


def test_a_micro_batch_is_one_stream_without_padding() -> None:
    batch = collate.stream([ONE, TWO, THREE])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    assert batch["document_ids"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert batch["bounds"].tolist() == [0, 3, 5, 9]
    assert batch["bounds"].dtype == torch.int32
    assert batch["lengths"] == (3, 2, 4)


def test_the_first_token_of_a_document_is_not_predicted_from_the_document_before() -> None:
    batch = collate.stream([ONE, Row([4, 5], [(0, 2)]), Row([6], [(0, 1)]), THREE])
    assert batch["labels"].tolist() == [[X, 2, 3, X, 5, X, X, X, 8, 9]]


def test_pieces_of_rows_keep_their_trained_spans() -> None:
    assert slice_row(THREE, 1, 3) == Row([7, 8], [(1, 2)])
    assert slice_row(THREE, 0, 2) == Row([6, 7], [])
    assert concatenate([TWO, ONE]) == Row([4, 5, 1, 2, 3], [(1, 2), (2, 5)])


def items(folder: Path, packing: Packing) -> TokenSequences:
    writer = ShardWriter(folder, "train")
    writer.write([ONE, TWO, THREE])
    writer.close()
    if packing != "none":
        lengths = open_split(folder, "train").lengths
        write_packs(folder, "train", {"bfd": pack.bfd, "wrapped": pack.wrapped}[packing](lengths, 5))
    return TokenSequences(open_split(folder, "train"), packing)


@pytest.mark.parametrize(
    ("packing", "documents"),
    [
        ("none", [[ONE], [TWO], [THREE]]),
        ("bfd", [[THREE], [ONE, TWO]]),
        ("wrapped", [[Row([1, 2, 3, 4, 5], [(0, 3), (4, 5)])], [THREE]]),
    ],
)
def test_a_sample_is_a_row_or_a_pack(tmp_path: Path, packing: Packing, documents: list[list[Row]]) -> None:
    made = items(tmp_path, packing)
    assert [made.documents(item) for item in range(len(made))] == documents
    assert made.lengths.tolist() == [sum(len(row.input_ids) for row in rows) for rows in documents]


@pytest.mark.parametrize(("packing", "lengths"), [("none", (3, 2)), ("bfd", (4, 3, 2)), ("wrapped", (5, 4))])
def test_the_documents_of_packs_follow_each_other(tmp_path: Path, packing: Packing, lengths: tuple[int, ...]) -> None:
    batch = items(tmp_path, packing).batch([0, 1])
    assert batch["lengths"] == lengths
    assert batch["input_ids"].shape == (1, sum(lengths))
