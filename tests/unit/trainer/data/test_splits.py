"""Prepared rows on disk: rows are read as written, and the bytes depend on the rows alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from finetune_trainer.data.pack import Packs, bfd, wrapped
from finetune_trainer.data.row import Row
from finetune_trainer.data.splits import ShardWriter, SplitFacts, open_split, write_packs

ROWS = [Row(list(range(i, 2 * i + 2)), [(0, 1), (i // 2 + 1, i + 2)], desirable=i % 3 > 0) for i in range(50)]


def write(folder: Path, rows: list[Row], portion: int, rows_per_shard: int = 20) -> SplitFacts:
    folder.mkdir()
    writer = ShardWriter(folder, "train", rows_per_shard)
    for first in range(0, len(rows), portion):
        writer.write(rows[first : first + portion])
    return writer.close()


def test_rows_are_read_in_order(tmp_path: Path) -> None:
    facts = write(tmp_path / "data", ROWS, portion=7)
    split = open_split(tmp_path / "data", "train")
    assert list(split) == ROWS
    assert split.row(33) == ROWS[33]
    assert split.lengths.tolist() == [len(row.input_ids) for row in ROWS]
    assert facts == SplitFacts(
        rows=50,
        tokens=sum(len(row.input_ids) for row in ROWS),
        trained_tokens=sum(row.trained_tokens for row in ROWS),
        longest=51,
        highest_id=99,
    )


def test_the_bytes_depend_on_the_rows_alone(tmp_path: Path) -> None:
    write(tmp_path / "one", ROWS, portion=1)
    write(tmp_path / "many", ROWS, portion=50)
    names = [f"train-{number:05}.arrow" for number in range(3)]
    assert sorted(file.name for file in (tmp_path / "many").iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


@pytest.mark.parametrize("count", [0, 20, 40])
def test_shards_that_are_just_full_or_empty(tmp_path: Path, count: int) -> None:
    assert write(tmp_path / "data", ROWS[:count], portion=20).rows == count
    assert list(open_split(tmp_path / "data", "train")) == ROWS[:count]


def test_an_index_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "data", ROWS, portion=50)
    split = open_split(tmp_path / "data", "train")
    for index in (-1, 50):
        with pytest.raises(IndexError):
            split.row(index)


@pytest.mark.parametrize("way", [bfd, wrapped])
def test_packs_are_kept_with_their_split(tmp_path: Path, way: Callable[..., Packs]) -> None:
    write(tmp_path / "data", ROWS, portion=50)
    assert open_split(tmp_path / "data", "train").packs is None
    packs = way(open_split(tmp_path / "data", "train").lengths, 64)
    write_packs(tmp_path / "data", "train", packs)
    kept = open_split(tmp_path / "data", "train").packs
    assert kept is not None
    for name in ("offsets", "rows", "starts", "ends"):
        assert np.array_equal(getattr(kept, name), getattr(packs, name))
        assert getattr(kept, name).dtype == getattr(packs, name).dtype
