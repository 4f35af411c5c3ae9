"""Parquet and Arrow files: batches of rows in Arrow's stream format, and the rows of such a batch.

Used by `blocks`. Batches move between processes as bytes in Arrow's stream format, which hold only the slice. Values
are read by their type at any depth: a map becomes an object, and JSON (which ``datasets`` writes for columns of type
``Json``) becomes its value.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetune_trainer.data import strict_json
from finetune_trainer.data.files import DataFile
from finetune_trainer.data.readers.decompress import read_errors, seekable
from finetune_trainer.data.samples import RowError
from finetune_trainer.errors import InvalidData

BUFFER = 1 << 20


def read_batches(file: DataFile, rows: int, size: int) -> Iterator[tuple[int, bytes]]:
    """(index of the first row, batch) for about ``rows`` rows or ``size`` bytes each. Raises InvalidData, AccessDenied,
    NoSpace."""
    first = 0
    with read_errors(file), seekable(file) as path:
        try:
            for batch in _parquet(str(path), rows, size) if file.kind == "parquet" else _arrow(str(path)):
                _column_readers(batch.schema)  # reads the names of all fields
                if first == 0 and len(set(batch.schema.names)) < len(batch.schema.names):
                    raise InvalidData(f"{file.name}: two columns have the same name. Rename one of the two columns")
                step = max(1, min(rows, size * batch.num_rows // max(1, batch.nbytes)))
                for start in range(0, batch.num_rows, step):
                    part = batch.slice(start, step)
                    yield first, _serialized(part)
                    first += part.num_rows
        except UnicodeDecodeError:
            raise InvalidData(
                f"{file.name}: the name of a column or of a field in it is not UTF-8. Rename it"
            ) from None
        except pa.ArrowException as error:
            raise InvalidData(
                f"{file.name} is not a valid {file.kind} file: {_first_line(error)}. Copy or write it again"
            ) from None


def batch_rows(payload: bytes, limit: int) -> Iterator[Any | RowError]:
    """The rows of a batch. Fields of nested objects that are null are dropped: Arrow gives every object of a column the
    same fields, so null is how it writes a missing field. A row of more than ``limit`` bytes is a RowError."""
    with pa.ipc.open_stream(payload) as stream:
        batch = stream.read_next_batch()
    readers = _column_readers(batch.schema)
    for row in _values(batch, limit):
        yield row if isinstance(row, RowError) else _read_columns(row, readers)


def _column_readers(schema: pa.Schema) -> "dict[str, _Read]":
    return {field.name: read for field in schema if (read := _value_reader(field.type)) is not None}


def _read_columns(row: dict[str, Any], readers: "dict[str, _Read]") -> dict[str, Any] | RowError:
    try:
        for name, read in readers.items():
            if row[name] is not None:
                row[name] = read(row[name])
    except RowError as error:
        return error
    return row


def _values(batch: pa.RecordBatch, limit: int) -> Iterator[Any | RowError]:
    if batch.nbytes <= limit:
        try:
            yield from batch.to_pylist(maps_as_pydicts="strict")
            return
        except (ValueError, KeyError, OverflowError, TypeError):
            pass  # a row is broken; the loop below finds it
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        if row.nbytes > limit:
            yield RowError(
                "too-large", f"found a row of more than {limit >> 20} MiB, which is the limit: shorten or remove it"
            )
            continue
        try:
            yield row.to_pylist(maps_as_pydicts="strict")[0]
        except UnicodeDecodeError:
            yield RowError("not-utf8", "found text that is not UTF-8, expected UTF-8")
        except KeyError as error:
            yield RowError("wrong-type", f"found a map with a key twice, expected each key once: {_first_line(error)}")
        except (ValueError, OverflowError, TypeError) as error:  # such as a date outside the calendar, an object as key
            yield RowError("wrong-type", f"found a value that cannot be read: {_first_line(error)}")


def _parquet(path: str, rows: int, size: int) -> Iterator[pa.RecordBatch]:
    # Neither memory-mapped nor read ahead: a row group may be as large as the file.
    with pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
        count = max(1, file.metadata.num_rows)
        total = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        yield from file.iter_batches(batch_size=max(1, min(rows, size * count // max(1, total))))


def _arrow(path: str) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(path) as source:
        if source.read(6) == b"ARROW1":
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            _validate(batch)
            yield batch


def _validate(batch: pa.RecordBatch) -> None:
    """Without validation, offsets outside the buffers would be read, and crash the process."""
    batch.validate()  # the columns have the length and the types of the batch
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise
            # The text of a single row, which `_values` reports, has ended the validation: the rest, without text.
            column.view(_text_as_bytes(column.type)).validate(full=True)


def _text_as_bytes(type: pa.DataType) -> pa.DataType:
    """The type of the same buffers in which text is bytes."""
    inner = _text_as_bytes
    kinds = pa.types
    if isinstance(type, pa.BaseExtensionType):
        return inner(type.storage_type)
    if kinds.is_struct(type):
        return pa.struct([field.with_type(inner(field.type)) for field in type])
    if kinds.is_union(type):
        return pa.union([field.with_type(inner(field.type)) for field in type], type.mode, type.type_codes)
    if kinds.is_map(type):
        return pa.map_(type.key_field.with_type(inner(type.key_type)), type.item_field.with_type(inner(type.item_type)))
    if kinds.is_dictionary(type):
        return pa.dictionary(type.index_type, inner(type.value_type), type.ordered)
    if kinds.is_run_end_encoded(type):
        return pa.run_end_encoded(type.run_end_type, inner(type.value_type))
    if kinds.is_fixed_size_list(type):
        return pa.list_(type.value_field.with_type(inner(type.value_type)), type.list_size)
    for is_list, make_list in _LISTS:
        if is_list(type):
            return make_list(type.value_field.with_type(inner(type.value_type)))
    return _BYTES.get(type, type)


_LISTS = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_view),
    (pa.types.is_large_list_view, pa.large_list_view),
)
_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


def _serialized(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


_Read = Callable[[Any], Any]


def _value_reader(type: pa.DataType) -> _Read | None:
    """What turns a value of a type, which is not null, into the value that it means; None if it is that value."""
    if isinstance(type, pa.BaseExtensionType):
        return _read_json if type.extension_name == "arrow.json" else _value_reader(type.storage_type)
    if pa.types.is_struct(type):
        fields = {field.name: _value_reader(field.type) or _unchanged for field in type}
        return lambda value: {name: fields[name](inner) for name, inner in value.items() if inner is not None}
    if pa.types.is_map(type):
        return _in_map(_value_reader(type.item_type) or _unchanged)
    if pa.types.is_nested(type) and hasattr(type, "value_type"):  # all kinds of lists
        return None if (read := _value_reader(type.value_type)) is None else _in_list(read)
    if pa.types.is_dictionary(type) or pa.types.is_run_end_encoded(type):
        return _value_reader(type.value_type)
    return None


def _in_map(read: _Read) -> _Read:
    # As in JSON, keys are text, whatever their type.
    return lambda value: {str(key): None if inner is None else read(inner) for key, inner in value.items()}


def _in_list(read: _Read) -> _Read:
    return lambda value: [None if inner is None else read(inner) for inner in value]


def _unchanged(value: Any) -> Any:
    return value


def _read_json(value: Any) -> Any:
    try:
        return strict_json.loads(value)
    except (ValueError, RecursionError, TypeError) as error:
        raise RowError("not-json", f"found a value of type JSON that is not JSON: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
