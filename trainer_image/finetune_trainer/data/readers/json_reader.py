"""The elements of a ``.json`` file that is a list, without the whole list in memory.

Used by `blocks`. The text moves through a buffer, and elements are parsed from its front. A parser cannot resume after
a JSON error, so an error concerns the whole file, not a row.
"""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from finetune_trainer.data import strict_json
from finetune_trainer.errors import InvalidData

LOOKAHEAD = 64
"""Characters needed behind a value before its end is certain: ``12`` may be the begin of ``12.5e3``."""
WHITE_SPACE = " \t\n\r"


def read_elements(pieces: Iterator[bytes], name: str, limit: int) -> Iterator[tuple[Any, str]]:
    """The list's elements, each with its JSON of at most ``limit`` characters. An element with a key twice is a
    RowError. Bytes that are not UTF-8 become lone surrogates. Raises InvalidData with the line."""
    text = _Buffer(pieces, name)
    if (first := text.peek()) != "[":
        if not first:
            raise InvalidData(f"{name} is empty, expected a list of objects: [{{...}}, ...]")
        hint = ", or an object per line" if first == "{" else ""
        raise InvalidData(f"{name}:{text.line}: found {first!r}, expected a list of objects: [{{...}}, ...]{hint}")
    text.skip(1)
    if text.peek() != "]":
        yield text.read_value(limit)
        while text.peek() == ",":
            text.skip(1)
            text.peek()
            yield text.read_value(limit)
    if text.peek() != "]":
        text.fail("expected ',' or ']' after a row" if text.peek() else "the file ends within the list", 0)
    text.skip(1)
    if text.peek():
        text.fail("expected nothing after the list", 0)


@dataclass
class _Buffer:
    pieces: Iterator[bytes]
    name: str
    buffer: str = ""
    position: int = 0
    line: int = 1
    """Line and column, from 1, at which the buffer begins."""
    column: int = 1
    ended: bool = False

    def __post_init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self.position < len(self.buffer):
                if (char := self.buffer[self.position]) not in WHITE_SPACE:
                    return char
                self.position += 1
            if self.ended:
                return ""
            self.fill()

    def skip(self, count: int) -> None:
        self.position += count

    def fill(self, least: int = 1) -> None:
        """Drop what is read, and read at least ``least`` more bytes."""
        done, rest = self.buffer[: self.position], self.buffer[self.position :]
        self.line, self.column = self._place(len(done))
        added, size = [], 0
        while size < least and not self.ended:
            piece = next(self.pieces, b"")
            self.ended = not piece
            size += len(piece)
            added.append(self.decoder.decode(piece, final=self.ended))
        self.buffer, self.position = rest + "".join(added), 0

    def read_value(self, limit: int) -> tuple[Any, str]:
        """The value that begins at the current position, and its JSON."""
        while True:
            try:
                value, end = strict_json.raw_decode(self.buffer, self.position)
                if self.ended or end + LOOKAHEAD <= len(self.buffer):
                    text, self.position = self.buffer[self.position : end], end
                    return value, text
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos + LOOKAHEAD > len(self.buffer)
                if self.ended or not unfinished:
                    self.fail(error.msg, error.pos - self.position)
            except RecursionError:
                self.fail("lists or objects in a row are nested too deeply", 0)
            except ValueError as error:  # a number with thousands of digits
                self.fail(str(error), 0)
            unread = len(self.buffer) - self.position
            if unread > limit:
                self.fail(f"a row of more than {limit >> 20} MiB", 0)
            self.fill(unread)  # doubles the buffer each time, so that a long row is not parsed too often

    def fail(self, message: str, offset: int) -> NoReturn:
        line, column = self._place(self.position + offset)
        raise InvalidData(f"{self.name}:{line}: not JSON: {message} at column {column}")

    def _place(self, position: int) -> tuple[int, int]:
        """(line, column) of a position in the buffer."""
        breaks = self.buffer.count("\n", 0, position)
        if not breaks:
            return self.line, self.column + position
        return self.line + breaks, position - self.buffer.rfind("\n", 0, position)
