"""A split of prepared data on disk: tokenized rows as Arrow IPC streams, read without loading them into memory.

`prepare` writes splits, the workflows read them on every rank. ``<split>-00000.arrow`` and so on hold the rows in
order; ``<split>.packs.arrow`` holds which rows form a pack, if the job packs. The bytes depend only on the rows, not on
the portions in which they are written, so equal data has equal digests. Reading maps the files: lengths come from the
offsets, and only the tokens of requested rows are read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from finetune_trainer.data.pack import Packs
from finetune_trainer.data.row import Row

ROWS_PER_SHARD = 262_144
TOKENS_PER_BATCH = 1 << 20
"""A record batch is written once it holds so many tokens: memory is bounded, and offsets fit into 32 bits."""
ROWS_PER_BATCH = 8192
PACKS_PER_BATCH = 65_536

_ROWS = pa.schema([("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.int32())), ("desirable", pa.bool_())])
"""``trained`` holds start and end of each span, flattened."""
_PACKS = pa.schema([("row", pa.list_(pa.int64())), ("start", pa.list_(pa.int32())), ("end", pa.list_(pa.int32()))])


@dataclass(frozen=True)
class SplitFacts:
    """Totals of a written split."""

    rows: int
    tokens: int
    trained_tokens: int
    longest: int
    """Tokens of the longest row."""
    highest_id: int
    """Largest token id; -1 without rows."""


class ShardWriter:
    """Writes the rows of a split, which arrive in order and in any portions. The split is complete after `close`."""

    def __init__(self, folder: Path, split: str, rows_per_shard: int = ROWS_PER_SHARD) -> None:
        self.folder, self.split, self.rows_per_shard = folder, split, rows_per_shard
        self._batch: list[Row] = []
        self._batch_tokens = 0
        self._shards = self._in_shard = 0
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._rows = self._tokens = self._trained = self._longest = 0
        self._highest = -1

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        for row in rows:
            self._batch.append(row)
            length = len(row.input_ids)
            self._rows += 1
            self._tokens += length
            self._trained += row.trained_tokens
            self._longest = max(self._longest, length)
            self._batch_tokens += length
            self._in_shard += 1
            if len(self._batch) == ROWS_PER_BATCH or self._batch_tokens >= TOKENS_PER_BATCH:
                self._flush()
            if self._in_shard == self.rows_per_shard:
                self._end_shard()

    def close(self) -> SplitFacts:
        """Write the remaining rows. A split without rows has an empty shard."""
        if self._in_shard or not self._shards:
            self._end_shard()
        return SplitFacts(self._rows, self._tokens, self._trained, self._longest, self._highest)

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pa.ipc.new_stream(_shard_file(self.folder, self.split, self._shards), _ROWS)
        if not self._batch:
            return
        tokens = _list_array([row.input_ids for row in self._batch])
        spans = _list_array([[edge for span in row.trained for edge in span] for row in self._batch])
        if len(tokens.values):
            self._highest = max(self._highest, int(tokens.values.to_numpy().max()))
        desirable = pa.array([row.desirable for row in self._batch], pa.bool_())
        self._writer.write_batch(pa.record_batch([tokens, spans, desirable], schema=_ROWS))
        self._batch, self._batch_tokens = [], 0

    def _end_shard(self) -> None:
        self._flush()
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        self._shards += 1
        self._in_shard = 0


class Split(Sequence[Row]):
    """The rows of a split, memory-mapped. `open_split` creates it."""

    def __init__(self, batches: list[pa.RecordBatch], packs: Packs | None) -> None:
        self.packs = packs
        """Which rows form a pack; None if rows are not packed."""
        sizes = [0, *(batch.num_rows for batch in batches)]
        self._starts = np.cumsum(sizes)
        self._ids, self._trained, self._desirable = ([batch.column(name) for batch in batches] for name in _ROWS.names)
        self.lengths: npt.NDArray[np.int32] = np.concatenate(
            [np.empty(0, np.int32), *(np.diff(ids.offsets.to_numpy()) for ids in self._ids)]
        )
        """[rows]: tokens of each row."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return [self.row(i) for i in range(len(self))[index]] if isinstance(index, slice) else self.row(index)

    def __iter__(self) -> Iterator[Row]:
        return (self.row(index) for index in range(len(self)))

    def row(self, index: int) -> Row:
        """Read a row. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a split with {len(self)} rows")
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        position = index - int(self._starts[batch])
        edges = _values(self._trained[batch], position).tolist()
        ids: list[int] = _values(self._ids[batch], position).tolist()
        desirable: bool = self._desirable[batch][position].as_py()
        return Row(ids, list(zip(edges[::2], edges[1::2], strict=True)), desirable=desirable)


def open_split(folder: Path, split: str) -> Split:
    """Open a split that `ShardWriter` has closed, with its packs if `write_packs` wrote them. Raises
    FileNotFoundError."""
    shards = sorted(folder.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9].arrow"))
    if not shards:
        raise FileNotFoundError(f"no split {split!r} in {folder}")
    batches = [batch for shard in shards for batch in _read(shard)]
    packs = None
    if (file := _packs_file(folder, split)).exists():
        tables = _read(file)
        counts = [np.diff(table.column("row").offsets.to_numpy()) for table in tables]
        packs = Packs(
            np.concatenate([[0], *counts]).cumsum().astype(np.int64),
            *(
                np.concatenate([np.empty(0, dtype), *(table.column(name).values.to_numpy() for table in tables)])
                for name, dtype in (("row", np.int64), ("start", np.int32), ("end", np.int32))
            ),
        )
    return Split(batches, packs)


def write_packs(folder: Path, split: str, packs: Packs) -> None:
    """Write which rows of a split form a pack."""
    with pa.ipc.new_stream(_packs_file(folder, split), _PACKS) as writer:
        for first in range(0, len(packs), PACKS_PER_BATCH):
            edges = packs.offsets[first : first + PACKS_PER_BATCH + 1]
            inside = slice(int(edges[0]), int(edges[-1]))
            offsets = pa.array((edges - edges[0]).astype(np.int32))
            columns = [
                pa.ListArray.from_arrays(offsets, pa.array(values[inside]))
                for values in (packs.rows, packs.starts, packs.ends)
            ]
            writer.write_batch(pa.record_batch(columns, schema=_PACKS))


def _shard_file(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05}.arrow"


def _packs_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.packs.arrow"


def _read(file: Path) -> list[pa.RecordBatch]:
    return list(pa.ipc.open_stream(pa.memory_map(str(file))))


def _list_array(rows: Sequence[Sequence[int]]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    values = np.concatenate([np.empty(0, np.int32), *(np.asarray(row, np.int32) for row in rows)])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _values(column: pa.ListArray, index: int) -> npt.NDArray[np.int32]:
    values: npt.NDArray[np.int32] = column[index].values.to_numpy()
    return values
