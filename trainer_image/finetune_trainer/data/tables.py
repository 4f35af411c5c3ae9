"""Parquet and Arrow files: batches of rows as Arrow's own bytes, and those bytes as rows.

Used by `rows`. Batches travel between processes in Arrow's stream format, which holds only the slice at hand.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetune_trainer.data.decompress import plain, reading
from finetune_trainer.data.files import DataFile
from finetune_trainer.data.samples import BadRow
from finetune_trainer.errors import InvalidData

BUFFER = 1 << 20


def batches(file: DataFile, rows: int, size: int) -> Iterator[tuple[int, bytes]]:
    """(index of the first row, batch) for about ``rows`` rows or ``size`` bytes each."""
    first = 0
    with reading(file), plain(file) as path:
        try:
            for batch in _parquet(str(path), rows, size) if file.kind == "parquet" else _arrow(str(path)):
                if first == 0 and len(set(batch.schema.names)) < len(batch.schema.names):
                    raise InvalidData(f"{file.name}: two columns have the same name")
                step = max(1, min(rows, size * batch.num_rows // max(1, batch.nbytes)))
                for start in range(0, batch.num_rows, step):
                    part = batch.slice(start, step)
                    yield first, _packed(part)
                    first += part.num_rows
        except pa.ArrowException as error:
            raise InvalidData(f"{file.name} is no {file.kind} file, or a damaged one: {_short(error)}") from None


def rows(payload: bytes, largest: int) -> Iterator[Any | BadRow]:
    """The rows of a batch. Fields of nested objects that are null are left out: Arrow gives every object of a column
    the same fields, so null is how it writes that one is missing."""
    with pa.ipc.open_stream(payload) as stream:
        batch = stream.read_next_batch()
    nested = [field.name for field in batch.schema if pa.types.is_nested(field.type)]
    for row in _values(batch, largest):
        if isinstance(row, BadRow):
            yield row
            continue
        for name in nested:
            row[name] = _present(row[name])
        yield row


def _values(batch: Any, largest: int) -> Iterator[Any | BadRow]:
    if batch.nbytes <= largest:
        try:
            yield from batch.to_pylist()
            return
        except ValueError:
            pass  # one row is broken; below, which one
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        if row.nbytes > largest:
            yield BadRow(
                "too-large", f"found a row of more than {largest >> 20} MiB, expected one that a model can read"
            )
            continue
        try:
            yield row.to_pylist()[0]
        except UnicodeDecodeError:
            yield BadRow("not-utf8", "found text that is not UTF-8")
        except ValueError as error:  # a date beyond the calendar, for one
            yield BadRow("wrong-type", f"found a value that can't be read: {_short(error)}")


def _parquet(path: str, rows: int, size: int) -> Iterator[Any]:
    # Not memory-mapped and not read ahead: a row group may be as large as the file.
    with pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
        count = max(1, file.metadata.num_rows)
        total = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        yield from file.iter_batches(batch_size=max(1, min(rows, size * count // max(1, total))))


def _arrow(path: str) -> Iterator[Any]:
    with pa.memory_map(path) as source:
        if source.read(6) == b"ARROW1":
            file = pa.ipc.open_file(source)
            found = (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            source.seek(0)
            found = iter(pa.ipc.open_stream(source))
        for batch in found:
            _validate(batch)
            yield batch


def _validate(batch: Any) -> None:
    """Offsets that lead out of the buffers would be read all the same, and end the process."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):  # a matter of one row, which `rows` names
            raise


def _packed(batch: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_present(inner) for inner in value]
    return value


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
