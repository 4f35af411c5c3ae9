"""The pages of docs/ and README.md, and the code in them, for tests that try it."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

PAGES = (Path("README.md"), *sorted(Path("docs").rglob("*.md")))
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)(?P=fence)$", re.MULTILINE | re.DOTALL
)
SPAN = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """A code block."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def title(self) -> str:
        """For the names of tests."""
        return f"{self.page}:{self.line}"


@cache
def text_of(page: Path) -> str:
    """A page, read once."""
    return page.read_text(encoding="utf-8")


@cache
def blocks(*languages: str) -> tuple[Block, ...]:
    """The code blocks of all pages in one of these languages. Commands and their output have none: it is empty."""
    return tuple(
        Block(page, text_of(page).count("\n", 0, match.start()) + 1, match["language"], match["text"])
        for page in PAGES
        for match in FENCE.finditer(text_of(page))
        if match["language"] in languages
    )


@cache
def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text_of(page))


def commands() -> Iterator[tuple[str, list[str]]]:
    """(where, words) for each command in blocks without a language and in code spans, as far as a shell can split it. A
    command ends at a pipe, at `&&`, and at a comment."""
    for block in blocks("", "bash", "sh"):
        for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
            yield from ((block.title, words) for words in _split(line.removeprefix("$ ")))
    for page in PAGES:
        for span in SPAN.findall(prose(page)):
            yield from ((str(page), words) for words in _split(span))


def _split(line: str) -> Iterator[list[str]]:
    for part in re.split(r"\s(?:\||&&|#)(?:\s|$)", line):
        try:
            words = shlex.split(part)
        except ValueError:  # an apostrophe in the output of a command
            continue
        if words:
            yield words
