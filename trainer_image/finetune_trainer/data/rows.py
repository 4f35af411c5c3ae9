"""Data files -> blocks of raw rows -> rows, each with the place it came from.

Called by preparation: `blocks` in one process, which does little more than read, `parse_block` in many. Memory is flat
whatever the file's size: a block is bounded in rows and in bytes, and no row may be larger than ROW_LIMIT. A row that
can't be read is a BadRow in its place; what makes the rest of a file unreadable is InvalidData.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from finetune_trainer.data import csv_rows, tables
from finetune_trainer.data.decompress import pieces
from finetune_trainer.data.files import DataFile, Kind
from finetune_trainer.data.json_list import elements
from finetune_trainer.data.samples import BadRow
from finetune_trainer.errors import InvalidData

ROW_LIMIT = 64 << 20
"""Bytes. No model reads rows this long; a file with a line this long is broken."""
BLOCK_BYTES = 4 << 20
"""A block ends here, even with few rows."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of one file, on their way to a process that parses them."""

    name: str
    kind: Kind
    first: int
    """Line number (from 1) or index (from 0) of the payload's first row."""
    payload: bytes | list[tuple[str, Any]]
    """Lines as they are, or a table as Arrow writes it. Of json and csv, where only parsing shows how far a row goes,
    the places and rows themselves."""
    size: int = 0
    """Bytes of the file that it takes; 0 where that isn't known, as in archives and tables."""


def blocks(file: DataFile, rows: int = 512) -> Iterator[Block]:
    """A file's rows in order, about ``rows`` at a time. Raises InvalidData, AccessDenied."""
    match file.kind:
        case "jsonl" | "txt":
            yield from _line_blocks(file, rows)
        case "json" if _is_lines(file):
            yield from _line_blocks(replace(file, kind="jsonl"), rows)
        case "json":
            values = enumerate(elements(_utf8(file), file.name, ROW_LIMIT))
            yield from _parsed(
                file, rows, ((f"[{i}]", _checked(value, text), len(text)) for i, (value, text) in values)
            )
        case "csv":
            records = csv_rows.records(_lines(_utf8(file)), file.name, ROW_LIMIT)
            yield from _parsed(file, rows, ((f":{line}", row, size) for line, row, size in records))
        case "parquet" | "arrow":
            for first, payload in tables.batches(file, rows, BLOCK_BYTES):
                yield Block(file.name, file.kind, first, payload)


def parse_block(block: Block) -> Iterator[tuple[str, Any | BadRow]]:
    """The rows of a block, each with its place: ``name:line``, or ``name[index]`` where a file has no lines."""
    if isinstance(block.payload, list):
        yield from block.payload
    elif block.kind in ("parquet", "arrow"):
        for index, row in enumerate(tables.rows(block.payload, ROW_LIMIT), start=block.first):
            yield f"{block.name}[{index}]", row
    else:
        parse = _json_line if block.kind == "jsonl" else _text_line
        for number, line in enumerate(block.payload.split(b"\n"), start=block.first):
            if line.strip():
                yield f"{block.name}:{number}", parse(line)


def _is_lines(file: DataFile) -> bool:
    """Whether a file named .json has one object a line, as many data sets of hubs do: whether its first line is one."""
    line = b""
    for piece in _utf8(file):
        line = (line + piece).lstrip()
        if line and not line.startswith(b"{"):
            return False
        line, end, _ = line.partition(b"\n")
        if end or len(line) > ROW_LIMIT:
            break
    return isinstance(_json_line(line), dict)


def _line_blocks(file: DataFile, rows: int) -> Iterator[Block]:
    held: list[bytes] = []
    size, first, number = 0, 1, 0
    for number, line in enumerate(_lines(_utf8(file)), start=1):
        if line is not None:
            held.append(line)
            size += len(line)
        if held and (line is None or len(held) >= rows or size >= BLOCK_BYTES):
            yield Block(file.name, file.kind, first, b"".join(held), _in_file(file, size))
            held, size = [], 0
        if line is None:
            yield Block(file.name, file.kind, number, [(f"{file.name}:{number}", _too_large())])
        if not held:
            first = number + 1
    if held:
        yield Block(file.name, file.kind, first, b"".join(held), _in_file(file, size))


def _parsed(file: DataFile, rows: int, found: Iterable[tuple[str, Any, int]]) -> Iterator[Block]:
    held: list[tuple[str, Any]] = []
    total = 0
    for where, row, size in found:
        held.append((file.name + where, row))
        total += size
        if len(held) >= rows or total >= BLOCK_BYTES:
            yield Block(file.name, file.kind, 0, held, _in_file(file, total))
            held, total = [], 0
    if held:
        yield Block(file.name, file.kind, 0, held, _in_file(file, total))


def _in_file(file: DataFile, size: int) -> int:
    return 0 if file.compression else size


def _utf8(file: DataFile) -> Iterator[bytes]:
    """The pieces of a text file, without a byte order mark."""
    found = pieces(file)
    first = next(found, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InvalidData(f"{file.name} is UTF-16 text: save it as UTF-8")
    if first := first.removeprefix(codecs.BOM_UTF8):
        yield first
    yield from found


def _lines(found: Iterator[bytes]) -> Iterator[bytes | None]:
    """Lines with their ends. A line longer than ROW_LIMIT is read past and given as None."""
    held: list[bytes] = []
    size = 0
    for piece in found:
        *whole, rest = piece.split(b"\n")
        for line in whole:
            size += len(line)
            if size > ROW_LIMIT:
                yield None
            else:
                yield b"".join([*held, line, b"\n"]) if held else line + b"\n"
            held, size = [], 0
        size += len(rest)
        if size > ROW_LIMIT:
            held = []
        elif rest:
            held.append(rest)
    if size:
        yield None if size > ROW_LIMIT else b"".join(held)


def _json_line(line: bytes) -> Any | BadRow:
    try:
        text = line.decode()
        value = json.loads(text)
    except UnicodeDecodeError as error:
        return BadRow("not-utf8", f"not UTF-8 text at byte {error.start + 1} of the line: save the file as UTF-8")
    except json.JSONDecodeError as error:
        return BadRow("not-json", f"not JSON: {error.msg} at column {error.colno}, expected one object a line")
    except RecursionError:
        return BadRow("not-json", "not JSON: lists or objects nested too deeply, expected one object a line")
    except ValueError as error:  # a number of thousands of digits
        return BadRow("not-json", f"not JSON: {error}, expected one object a line")
    return _checked(value, text)


def _text_line(line: bytes) -> dict[str, str] | BadRow:
    try:
        return {"text": line.removesuffix(b"\r").decode()}
    except UnicodeDecodeError as error:
        return BadRow("not-utf8", f"not UTF-8 text at byte {error.start + 1} of the line: save the file as UTF-8")


def _checked(value: Any, text: str) -> Any | BadRow:
    """The row that ``text`` stands for, unless it has half a surrogate pair, which no tokenizer takes: bytes that were
    no UTF-8, or half an escaped character."""
    try:
        if "\\u" in text:
            text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as error:
        return BadRow(
            "not-utf8", f"found {error.object[error.start]!r}, which is half a character, expected UTF-8 text"
        )
    return value


def _too_large() -> BadRow:
    return BadRow("too-large", f"found a row of more than {ROW_LIMIT >> 20} MiB, expected one that a model can read")
