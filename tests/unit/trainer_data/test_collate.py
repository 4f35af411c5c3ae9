"""Micro-batches: what is padded, what is labelled, and where documents begin."""

from pathlib import Path

import pytest
from finetune_trainer.data import collate, pack
from finetune_trainer.data.items import Items, Packing, cut_out, joined
from finetune_trainer.data.row import IGNORED, Row
from finetune_trainer.data.store import ShardWriter, open_split, write_packs

ONE, TWO, THREE = Row([1, 2, 3], [(0, 3)]), Row([4, 5], [(1, 2)]), Row([6, 7, 8, 9], [(2, 4)])
X = IGNORED


def test_a_row_each_is_padded_to_the_longest() -> None:
    batch = collate.padded([ONE, TWO], pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch["labels"].tolist() == [[X, 2, 3], [X, 5, X]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["tokens"].item() == 5


def test_documents_of_a_pack_begin_at_position_zero_and_padding_is_one_of_them() -> None:
    batch = collate.packed([[ONE, TWO], [THREE]], pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    assert batch["labels"].tolist() == [[X, 2, 3, X, 5], [X, X, 8, 9, X]]
    assert "attention_mask" not in batch
    assert batch["tokens"].item() == 9


def test_flash_attention_gets_one_row_without_padding() -> None:
    batch = collate.flat([ONE, TWO])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[X, 2, 3, X, 5]]
    assert "attention_mask" not in batch


def test_pieces_of_rows_keep_what_is_trained() -> None:
    assert cut_out(THREE, 1, 3) == Row([7, 8], [(1, 2)])
    assert cut_out(THREE, 0, 2) == Row([6, 7], [])
    assert joined([TWO, ONE]) == Row([4, 5, 1, 2, 3], [(1, 2), (2, 5)])


def items(folder: Path, packing: Packing) -> Items:
    writer = ShardWriter(folder, "train")
    writer.write([ONE, TWO, THREE])
    writer.close()
    if packing != "none":
        lengths = open_split(folder, "train").lengths
        write_packs(folder, "train", {"bfd": pack.bfd, "wrapped": pack.wrapped}[packing](lengths, 5))
    return Items(open_split(folder, "train"), packing)


@pytest.mark.parametrize(
    ("packing", "documents"),
    [
        ("none", [[ONE], [TWO], [THREE]]),
        ("bfd", [[THREE], [ONE, TWO]]),
        ("wrapped", [[Row([1, 2, 3, 4, 5], [(0, 3), (4, 5)])], [THREE]]),
    ],
)
def test_an_item_is_a_row_or_a_pack(tmp_path: Path, packing: Packing, documents: list[list[Row]]) -> None:
    made = items(tmp_path, packing)
    assert [made.documents(item) for item in range(len(made))] == documents
    assert made.lengths.tolist() == [sum(len(row.input_ids) for row in rows) for rows in documents]


@pytest.mark.parametrize(
    ("packing", "attention", "shape", "keys"),
    [
        ("none", "flash_attention_2", (2, 3), "attention_mask"),
        ("bfd", "sdpa", (2, 5), "position_ids"),
        ("bfd", "flash_attention_2", (1, 9), "position_ids"),
        ("wrapped", "sdpa", (2, 5), "attention_mask"),
    ],
)
def test_the_shape_follows_packing_and_attention(
    tmp_path: Path, packing: Packing, attention: str, shape: tuple[int, int], keys: str
) -> None:
    made = items(tmp_path, packing)
    batch = made.collator(0, attention)([0, 1])
    assert batch["input_ids"].shape == shape
    assert set(batch) == {"input_ids", "labels", "tokens", keys}
