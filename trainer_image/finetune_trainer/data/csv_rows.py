"""The records of a ``.csv`` file with a header, quoted line breaks and all.

Used by `rows`. A record that isn't CSV is a BadRow, and reading goes on with the next line; a quote that is never
closed would swallow the rest of the file, so it ends with the largest row allowed.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass

from finetune_trainer.data.samples import BadRow
from finetune_trainer.errors import InvalidData

Record = dict[str, str] | BadRow


def records(lines: Iterator[bytes | None], name: str, largest: int) -> Iterator[tuple[int, Record, int]]:
    """(line on which it begins, record, bytes) of each record below the header; a line of None is one too long."""
    csv.field_size_limit(2 * largest)  # _Lines keeps records below it; the library's own limit is 128 KiB
    source = _Lines(lines, name, largest)
    reader = csv.reader(source, strict=True)
    header: list[str] | None = None
    while True:
        source.begin()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if header is None:
                raise InvalidData(f"{name}:1: not a CSV header: {error}") from None
            yield source.first, BadRow("not-csv", f"not CSV: {_reason(error)}"), source.size
            continue
        if fields is None:
            break
        if not fields:  # an empty line
            continue
        if header is None:
            header = _header(fields, name)
        elif source.broken:
            yield source.first, BadRow("not-utf8", "not UTF-8 text: save the file as UTF-8"), source.size
        elif len(fields) != len(header):
            found = f"found {len(fields)} fields, expected {len(header)}: {', '.join(header)[:200]}"
            yield source.first, BadRow("wrong-columns", found), source.size
        else:
            yield source.first, dict(zip(header, fields, strict=True)), source.size
    if header is None:
        raise InvalidData(f"{name} is empty, expected a header line with the names of the columns")


@dataclass
class _Lines:
    """Lines as csv's reader asks for them, and how many it took for the record at hand."""

    lines: Iterator[bytes | None]
    name: str
    largest: int
    number: int = 0
    first: int = 1
    size: int = 0
    broken: bool = False

    def begin(self) -> None:
        self.first, self.size, self.broken = self.number + 1, 0, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.number += 1
        self.size += self.largest + 1 if line is None else len(line)
        if line is None or self.size > self.largest:
            raise InvalidData(
                f"{self.name}:{self.first}: a row of more than {self.largest >> 20} MiB begins here. Is a quote never"
                " closed?"
            )
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.broken = True
            return line.decode(errors="replace")


def _header(fields: list[str], name: str) -> list[str]:
    header = [field.strip() for field in fields]
    if "" in header:
        raise InvalidData(f"{name}:1: column {header.index('') + 1} has no name; the first line names the columns")
    if twice := [field for field in header if header.count(field) > 1]:
        raise InvalidData(f"{name}:1: two columns are named {twice[0]!r}")
    return header


def _reason(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "the file ends within a quoted field: a quote that opens in this row is never closed"
    if "expected after" in str(error):
        return 'text goes on after a closing quote; quotes within a field are written twice: ""'
    return str(error)
