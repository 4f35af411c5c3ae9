"""Data files -> blocks of raw rows -> rows, each with its place in the file.

`read_blocks` runs in a single process and does little more than reading, `parse_block` runs in many. Memory use does
not depend on the size of the file: a block is bounded in rows and in bytes, and no row may be larger than ROW_LIMIT. A
row that cannot be read is a RowError in its place. An error that makes the rest of the file unreadable is InvalidData.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from finetune_trainer.data import strict_json
from finetune_trainer.data.files import DataFile, Kind
from finetune_trainer.data.readers.arrow_reader import batch_rows, read_batches
from finetune_trainer.data.readers.csv_reader import read_records
from finetune_trainer.data.readers.decompress import decompressed
from finetune_trainer.data.readers.json_reader import read_elements
from finetune_trainer.data.samples import RowError
from finetune_trainer.errors import InvalidData

ROW_LIMIT = 64 << 20
"""Bytes. No model reads rows this long; a file with such a line is broken."""
BLOCK_BYTES = 4 << 20
"""A block ends at this size, even with few rows."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a file, for a process that parses them."""

    name: str
    kind: Kind
    first: int
    """Line number (from 1) or index (from 0) of the first row in ``payload``."""
    payload: bytes | list[tuple[str, Any]]
    """Raw lines, or a batch in Arrow's stream format. For json and csv, where only parsing shows the end of a row:
    places and rows."""
    size: int = 0
    """Bytes of the file that the block covers; 0 if unknown, as for archives and tables."""


def read_blocks(file: DataFile, rows: int = 512) -> Iterator[Block]:
    """A file's rows in order, about ``rows`` per block. Raises InvalidData, AccessDenied, NoSpace."""
    match file.kind:
        case "jsonl" | "txt":
            yield from _line_blocks(file, rows)
        case "json" if _is_json_lines(file):
            yield from _line_blocks(replace(file, kind="jsonl"), rows)
        case "json":
            elements = enumerate(read_elements(_utf8_bytes(file), file.name, ROW_LIMIT))
            yield from _parsed_blocks(
                file, rows, ((f"[{i}]", _checked(value, text), len(text)) for i, (value, text) in elements)
            )
        case "csv":
            records = read_records(_lines(_utf8_bytes(file)), file.name, ROW_LIMIT)
            yield from _parsed_blocks(file, rows, ((f":{line}", row, size) for line, row, size in records))
        case "parquet" | "arrow":
            for first, payload in read_batches(file, rows, BLOCK_BYTES):
                yield Block(file.name, file.kind, first, payload)


def parse_block(block: Block) -> Iterator[tuple[str, Any | RowError]]:
    """The rows of a block, each with its place: ``name:line``, or ``name[index]`` if the file has no lines."""
    if isinstance(block.payload, list):
        yield from block.payload
    elif block.kind in ("parquet", "arrow"):
        for index, row in enumerate(batch_rows(block.payload, ROW_LIMIT), start=block.first):
            yield f"{block.name}[{index}]", row
    else:
        parse = _parse_json_line if block.kind == "jsonl" else _parse_text_line
        for number, line in enumerate(block.payload.split(b"\n"), start=block.first):
            if line.strip():
                yield f"{block.name}:{number}", parse(line)


def _is_json_lines(file: DataFile) -> bool:
    """Whether a .json file has an object per line, as many data sets on hubs do. Its first line decides."""
    line = b""
    for piece in _utf8_bytes(file):
        line = (line + piece).lstrip()
        if line and not line.startswith(b"{"):
            return False
        line, end, _ = line.partition(b"\n")
        if end or len(line) > ROW_LIMIT:
            break
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _line_blocks(file: DataFile, rows: int) -> Iterator[Block]:
    pending: list[bytes] = []
    size, first, number = 0, 1, 0
    for number, line in enumerate(_lines(_utf8_bytes(file)), start=1):
        if line is not None:
            pending.append(line)
            size += len(line)
        if pending and (line is None or len(pending) >= rows or size >= BLOCK_BYTES):
            yield Block(file.name, file.kind, first, b"".join(pending), _size_in_file(file, size))
            pending, size = [], 0
        if line is None:
            yield Block(file.name, file.kind, number, [(f"{file.name}:{number}", _too_large())])
        if not pending:
            first = number + 1
    if pending:
        yield Block(file.name, file.kind, first, b"".join(pending), _size_in_file(file, size))


def _parsed_blocks(file: DataFile, rows: int, parsed: Iterable[tuple[str, Any, int]]) -> Iterator[Block]:
    pending: list[tuple[str, Any]] = []
    total = 0
    for place, row, size in parsed:
        pending.append((file.name + place, row))
        total += size
        if len(pending) >= rows or total >= BLOCK_BYTES:
            yield Block(file.name, file.kind, 0, pending, _size_in_file(file, total))
            pending, total = [], 0
    if pending:
        yield Block(file.name, file.kind, 0, pending, _size_in_file(file, total))


def _size_in_file(file: DataFile, size: int) -> int:
    return 0 if file.compression else size


def _utf8_bytes(file: DataFile) -> Iterator[bytes]:
    """The pieces of a text file, without a byte order mark."""
    pieces = decompressed(file)
    first = next(pieces, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidData(f"{file.name} is UTF-16 text: save it as UTF-8")
    if first := first.removeprefix(codecs.BOM_UTF8):
        yield first
    yield from pieces


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes | None]:
    """Lines with their ends. A line longer than ROW_LIMIT is skipped and yields None."""
    pending: list[bytes] = []
    size = 0
    for piece in pieces:
        *complete, rest = piece.split(b"\n")
        for line in complete:
            size += len(line)
            if size > ROW_LIMIT:
                yield None
            else:
                yield b"".join([*pending, line, b"\n"]) if pending else line + b"\n"
            pending, size = [], 0
        size += len(rest)
        if size > ROW_LIMIT:
            pending = []
        elif rest:
            pending.append(rest)
    if size:
        yield None if size > ROW_LIMIT else b"".join(pending)


def _parse_json_line(line: bytes) -> Any | RowError:
    try:
        return strict_json.loads(line.decode())
    except RowError as error:
        return error
    except UnicodeDecodeError as error:
        return _not_utf8(error)
    except json.JSONDecodeError as error:
        return RowError("not-json", f"not JSON: {error.msg} at column {error.colno}, expected an object per line")
    except RecursionError:
        return RowError("not-json", "not JSON: lists or objects nested too deeply, expected an object per line")
    except ValueError as error:  # a number with thousands of digits
        return RowError("not-json", f"not JSON: {error}, expected an object per line")


def _parse_text_line(line: bytes) -> dict[str, str] | RowError:
    try:
        return {"text": line.removesuffix(b"\r").decode()}
    except UnicodeDecodeError as error:
        return _not_utf8(error)


def _checked(value: Any, text: str) -> Any | RowError:
    """``value``, whose JSON is ``text``, or the error of its characters."""
    try:
        strict_json.check_characters(value, text)
    except RowError as error:
        return error
    return value


def _not_utf8(error: UnicodeDecodeError) -> RowError:
    return RowError("not-utf8", f"not UTF-8 text at byte {error.start + 1} of the line: save the file as UTF-8")


def _too_large() -> RowError:
    return RowError(
        "too-large", f"found a row of more than {ROW_LIMIT >> 20} MiB, which is the limit: shorten or remove it"
    )
