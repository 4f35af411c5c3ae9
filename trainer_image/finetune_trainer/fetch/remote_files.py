"""The files that a hub or a bucket offers, in the form that `source_cache` and `download` use."""

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
    """The bytes of a file from ``start`` on. ``start`` is 0 when the server cannot begin elsewhere."""

    start: int
    chunks: Iterator[bytes]
    checksum: tuple[str, str] | None
    """(kind as in `checksums`, hexadecimal value) of the whole file. None when the server gives no usable checksum."""
    part_size: int = 0
    """Bytes in each part, for a checksum over parts."""


@dataclass(frozen=True)
class RemoteFile:
    """One file. ``name`` is its future path relative to the cache entry's files."""

    name: str
    size: int
    open: Callable[[int], AbstractContextManager[Stream]]
    """Opens a stream that starts at an offset in bytes."""


@dataclass(frozen=True)
class RemoteSource:
    """A source at one moment."""

    uri: str
    folder: str
    """Directory of its cache entries, below cache/sources. It is the same for all versions of the source."""
    version: str
    """Commit, or a digest over the server's file list. Other content has another version."""
    revision: str | None
    path: str
    """Path of the requested file inside the entry. Empty when the whole entry was requested."""
    files: list[RemoteFile]


def check_name(name: str, uri: str) -> str:
    """Check a name from a server that becomes a path in the workspace. Raises InvalidSpec for a name that could lead
    elsewhere, or that some file systems cannot store."""
    parts = name.split("/")
    if all(SAFE.fullmatch(part) and part not in (".", "..") and len(part) <= MAX_NAME for part in parts):
        return name
    raise InvalidSpec(
        f"{uri} has a file named {name[:200]!r}, which is not a safe name. Allowed are ASCII letters, digits, spaces"
        " and common punctuation, without '.' and '..' as parts of the path. Rename it, or name the files that you need"
    )


def entry_folder(name: str, requested: str) -> str:
    """A readable directory name. A different ``requested`` text gives a different name."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "--", name).strip(".-")[:80] or "source"
    return f"{readable}-{hashlib.sha256(requested.encode()).hexdigest()[:10]}"
