"""The rows of a ``.json`` file, which is one list, without holding the list.

Used by `rows`. The text slides through a buffer; one row at a time is taken from its front. JSON that is broken can't
be picked up again further on, so it is an error of the file, not of a row.
"""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from finetune_trainer.errors import InvalidData

AHEAD = 64
"""Characters to see beyond a value before believing where it ends: ``12`` may be the begin of ``12.5e3``."""
SPACE = " \t\n\r"


def elements(pieces: Iterator[bytes], name: str, largest: int) -> Iterator[tuple[Any, str]]:
    """The list's elements, each with its JSON. Bytes that are no UTF-8 become lone surrogates. Raises InvalidData
    with the line."""
    text = _Text(pieces, name)
    if (first := text.peek()) != "[":
        if not first:
            raise InvalidData(f"{name} is empty, expected a list of objects: [{{...}}, ...]")
        hint = ", or one object a line" if first == "{" else ""
        raise InvalidData(f"{name}:{text.line}: found {first!r}, expected a list of objects: [{{...}}, ...]{hint}")
    text.skip(1)
    if text.peek() != "]":
        yield text.value(largest)
        while text.peek() == ",":
            text.skip(1)
            text.peek()
            yield text.value(largest)
    if text.peek() != "]":
        text.fail("expected ',' or ']' after a row" if text.peek() else "the file ends within the list", 0)
    text.skip(1)
    if text.peek():
        text.fail("expected nothing after the list", 0)


@dataclass
class _Text:
    pieces: Iterator[bytes]
    name: str
    buffer: str = ""
    at: int = 0
    line: int = 1
    """Line and column of the buffer's begin, from 1."""
    column: int = 1
    ended: bool = False

    def __post_init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.json = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self.at < len(self.buffer):
                if (char := self.buffer[self.at]) not in SPACE:
                    return char
                self.at += 1
            if self.ended:
                return ""
            self.more()

    def skip(self, count: int) -> None:
        self.at += count

    def more(self, least: int = 1) -> None:
        """Drop what is behind, add at least so many bytes."""
        gone, rest = self.buffer[: self.at], self.buffer[self.at :]
        self.line, self.column = self._place(len(gone))
        added, size = [], 0
        while size < least and not self.ended:
            piece = next(self.pieces, b"")
            self.ended = not piece
            size += len(piece)
            added.append(self.decoder.decode(piece, final=self.ended))
        self.buffer, self.at = rest + "".join(added), 0

    def value(self, largest: int) -> tuple[Any, str]:
        """The value that begins here."""
        while True:
            try:
                value, end = self.json.raw_decode(self.buffer, self.at)
                if self.ended or end + AHEAD <= len(self.buffer):
                    text, self.at = self.buffer[self.at : end], end
                    return value, text
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos + AHEAD > len(self.buffer)
                if self.ended or not unfinished:
                    self.fail(error.msg, error.pos - self.at)
            except RecursionError:
                self.fail("a row with lists or objects nested too deeply", 0)
            except ValueError as error:  # a number of thousands of digits
                self.fail(str(error), 0)
            held = len(self.buffer) - self.at
            if held > largest:
                self.fail(f"a row of more than {largest >> 20} MiB", 0)
            self.more(held)  # twice as much each time, so that a long row isn't parsed over and over

    def fail(self, message: str, beyond: int) -> NoReturn:
        line, column = self._place(self.at + beyond)
        raise InvalidData(f"{self.name}:{line}: not JSON: {message} at column {column}")

    def _place(self, at: int) -> tuple[int, int]:
        breaks = self.buffer.count("\n", 0, at)
        if not breaks:
            return self.line, self.column + at
        return self.line + breaks, at - self.buffer.rfind("\n", 0, at)
