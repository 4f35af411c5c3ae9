"""What a hub or a bucket offers, in words that ``store`` understands."""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from finetune_trainer.errors import InvalidSpec

SAFE = re.compile(r"[\w.,=+@()\[\]{} ~!#%&'-]+", re.ASCII)
MAX_NAME = 255


@dataclass(frozen=True)
class Stream:
    """A file's bytes from ``start`` on. ``start`` is 0 where the server can't begin elsewhere."""

    start: int
    chunks: Iterator[bytes]
    check: tuple[str, str] | None
    """How the whole file is checked, as `sums` calls it, and the value; None where the server says nothing that can be
    checked."""
    part_size: int = 0
    """Of the parts that the check is made of, where it is."""


@dataclass(frozen=True)
class RemoteFile:
    """One file: ``name`` is where it will lie, relative to the entry's folder."""

    name: str
    size: int
    open: Callable[[int], AbstractContextManager[Stream]]


@dataclass(frozen=True)
class Remote:
    """A source at one moment."""

    uri: str
    folder: str
    """Of its entry, below cache/sources; the same for each version of the source."""
    version: str
    """Commit, or a digest over what the server says of the files: another content is another version."""
    revision: str | None
    path: str
    """Of what was asked for, inside the entry; empty for all of it."""
    files: list[RemoteFile]


def check_name(name: str, uri: str) -> str:
    """A name from a server, that will be one in the workspace. Raises InvalidSpec for one that could lie elsewhere or
    can't be written everywhere."""
    parts = name.split("/")
    if all(SAFE.fullmatch(part) and part not in (".", "..") and len(part) <= MAX_NAME for part in parts):
        return name
    raise InvalidSpec(
        f"{uri} has a file named {name[:200]!r}, which is not taken: names may have letters of ASCII, digits, spaces"
        " and common signs, and no '.' or '..' parts. Rename it, or name the files that you need"
    )


def short(name: str, asked: str) -> str:
    """A folder's name that people can read, and that is another one for whatever else is asked for."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "--", name).strip(".-")[:80] or "source"
    return f"{readable}-{hashlib.sha256(asked.encode()).hexdigest()[:10]}"
