"""Checksums that are updated as bytes arrive, of every kind that servers give.

Called by `download`. Kinds: sha256, md5, crc32, blob (git's sha1); sha256-parts, md5-parts, crc32-parts: the checksum
over the checksums of an object's parts, which is all that a bucket knows about an object uploaded in parts.
"""

import hashlib
import zlib
from collections.abc import Callable
from typing import Protocol

PARTS = "-parts"


class Checksum(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


class Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")

    def hexdigest(self) -> str:
        return self.digest().hex()


class OfParts:
    """A checksum over the checksums of parts of ``size`` bytes. The last part may be smaller."""

    def __init__(self, create: Callable[[], Checksum], size: int) -> None:
        self._create, self._size = create, size
        self._whole, self._part, self._room = create(), create(), size

    def update(self, data: bytes, /) -> None:
        view = memoryview(data)
        while view:
            taken = view[: self._room]
            self._part.update(bytes(taken))
            self._room -= len(taken)
            view = view[len(taken) :]
            if not self._room:
                self._end_part()

    def _end_part(self) -> None:
        self._whole.update(self._part.digest())
        self._part, self._room = self._create(), self._size

    def digest(self) -> bytes:
        if self._room < self._size:
            self._end_part()
        return self._whole.digest()

    def hexdigest(self) -> str:
        return self.digest().hex()


def _md5() -> Checksum:
    return hashlib.md5(usedforsecurity=False)


KINDS: dict[str, Callable[[], Checksum]] = {"sha256": hashlib.sha256, "md5": _md5, "crc32": Crc32}


def create(kind: str, size: int, part_size: int) -> Checksum:
    """``size`` is the size of the file in bytes, ``part_size`` that of its parts if the kind has parts."""
    if kind == "blob":
        return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    if kind.endswith(PARTS):
        return OfParts(KINDS[kind.removesuffix(PARTS)], part_size)
    return KINDS[kind]()
