"""The records of a ``.csv`` file with a header; quoted fields may contain line breaks.

Used by `blocks`. A record that is not CSV is a RowError, and reading continues with the next line. A quote that is
never closed would swallow the rest of the file, so a record ends at the size limit of a row. A column without a name,
such as the index that pandas writes, is named by its number; no format reads it.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass

from finetune_trainer.data.samples import RowError
from finetune_trainer.errors import InvalidData

Record = dict[str, str] | RowError


def read_records(lines: Iterator[bytes | None], name: str, limit: int) -> Iterator[tuple[int, Record, int]]:
    """(line on which it begins, record, bytes) of each record below the header. A line of None is longer than
    ``limit`` bytes. Raises InvalidData."""
    csv.field_size_limit(2 * limit)  # _Lines enforces the limit per record; the library's default is 128 KiB
    source = _Lines(lines, name, limit)
    reader = csv.reader(source, strict=True)
    header: list[str] | None = None
    while True:
        source.begin_record()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if header is None:
                raise InvalidData(
                    f"{name}:1: not a CSV header: {error}. The first line must name the columns, separated by commas"
                ) from None
            yield source.first, RowError("not-csv", f"not CSV: {_cause(error)}"), source.size
            continue
        if fields is None:
            break
        if not fields:  # an empty line
            continue
        if header is None:
            header = _header(fields, name)
        elif source.not_utf8:
            yield source.first, RowError("not-utf8", "not UTF-8 text: save the file as UTF-8"), source.size
        elif len(fields) != len(header):
            message = f"found {len(fields)} fields, expected {len(header)}: {', '.join(header)[:200]}"
            yield source.first, RowError("wrong-columns", message), source.size
        else:
            yield source.first, dict(zip(header, fields, strict=True)), source.size
    if header is None:
        raise InvalidData(f"{name} is empty, expected a first line with the names of the columns")


@dataclass
class _Lines:
    """Lines for csv's reader; counts the lines and bytes of the current record."""

    lines: Iterator[bytes | None]
    name: str
    limit: int
    number: int = 0
    first: int = 1
    size: int = 0
    not_utf8: bool = False

    def begin_record(self) -> None:
        self.first, self.size, self.not_utf8 = self.number + 1, 0, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.number += 1
        self.size += self.limit + 1 if line is None else len(line)
        if line is None or self.size > self.limit:
            raise InvalidData(
                f"{self.name}:{self.first}: a row of more than {self.limit >> 20} MiB begins here, which is the limit."
                " Check whether a quote in it is never closed"
            )
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.not_utf8 = True
            return line.decode(errors="replace")


def _header(fields: list[str], name: str) -> list[str]:
    header = [field.strip() or f"column {number} (no name)" for number, field in enumerate(fields, start=1)]
    if twice := [field for field in header if header.count(field) > 1]:
        raise InvalidData(f"{name}:1: two columns are named {twice[0]!r}. Rename one of the two columns")
    return header


def _cause(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "the file ends within a quoted field: a quote that opens in this row is never closed"
    if "expected after" in str(error):
        return 'text follows a closing quote. Write quotes within a field twice: ""'
    return str(error)
