"""A data file's bytes, decompressed, in pieces of bounded size.

Used by everything that reads rows. Nothing is ever held whole, and an archive that grows out of all proportion is
refused before it fills memory, disk or time. Every way in which a file can be damaged or closed to us ends here, in an
error that names the file.
"""

import bz2
import errno
import gzip
import lzma
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from finetune_trainer.data.files import DataFile
from finetune_trainer.errors import InvalidData, NoSpace
from finetune_trainer.run import denied

PIECE = 1 << 20
FREE = 256 << 20
"""Bytes that any archive may grow to."""
RATIO = 500
"""Beyond FREE: how many times its size an archive may grow. Text is packed 3 to 30 times; gzip's limit is 1032."""


@contextmanager
def reading(file: DataFile) -> Iterator[None]:
    """What goes wrong while a file is read, as an error for people."""
    try:
        yield
    except PermissionError:
        raise denied(file.path, file.name) from None
    except FileNotFoundError:
        raise InvalidData(f"{file.name} is gone: it was removed while it was read") from None
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        what = "a damaged or truncated archive" if file.compression else "unreadable"
        why = getattr(error, "strerror", None) or error
        raise InvalidData(f"{file.name} is {what}: {why}. Copy or download it again") from None


def pieces(file: DataFile) -> Iterator[bytes]:
    """The contents from start to end."""
    with reading(file), _open(file) as stream:
        allowed = FREE + RATIO * file.path.stat().st_size
        size = 0
        while piece := stream.read(PIECE):
            size += len(piece)
            if file.compression and size > allowed:
                raise InvalidData(
                    f"{file.name} grows to more than {RATIO} times its size when decompressed: this is no data set."
                    " Decompress it yourself if it is"
                )
            yield piece


@contextmanager
def plain(file: DataFile) -> Iterator[Path]:
    """A file that can be read at any place: itself, or decompressed into the temporary folder for the time being."""
    if file.compression is None:
        yield file.path
        return
    with tempfile.NamedTemporaryFile(prefix="rows-") as copy:
        for piece in pieces(file):
            try:
                copy.write(piece)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise NoSpace(
                    f"{file.name} must be decompressed to be read, and {tempfile.gettempdir()} is full after"
                    f" {os.path.getsize(copy.name)} bytes. Decompress it yourself: the format compresses by itself"
                ) from None
        copy.flush()
        yield Path(copy.name)


def _open(file: DataFile) -> IO[bytes] | Any:
    match file.compression:
        case "gz":
            return gzip.open(file.path)
        case "bz2":
            return bz2.open(file.path)
        case "xz":
            return lzma.open(file.path)
        case "zst":
            # Not zstandard's own reader, which takes a truncated file for a whole one.
            import pyarrow  # needs a moment to import, and most files don't need it

            return pyarrow.input_stream(str(file.path), compression="zstd")
        case None:
            return file.path.open("rb")
