"""The bytes of a data file, decompressed, in pieces of bounded size.

Every reader uses it. No file is in memory as a whole, and an archive that decompresses to an implausible size is
rejected before it fills memory, disk or time. Every error of a damaged or unreadable file is raised here with the name
of the file.
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
from finetune_trainer.workspace.folders import access_denied

PIECE = 1 << 20
"""Bytes."""
ALWAYS_ALLOWED = 256 << 20
"""Bytes to which every archive may decompress."""
MAX_RATIO = 500
"""Decompressed size by compressed size beyond ALWAYS_ALLOWED. Text compresses 3 to 30 times; gzip's limit is 1032."""


@contextmanager
def read_errors(file: DataFile) -> Iterator[None]:
    """Turns errors of reading a file into AccessDenied and InvalidData."""
    try:
        yield
    except PermissionError:
        raise access_denied(file.path, file.name) from None
    except FileNotFoundError:
        raise InvalidData(
            f"{file.name} was removed while it was read. Start the job again when the files no longer change"
        ) from None
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        state = "a damaged or truncated archive" if file.compression else "unreadable"
        cause = getattr(error, "strerror", None) or error
        raise InvalidData(f"{file.name} is {state}: {cause}. Copy or download it again") from None


def decompressed(file: DataFile) -> Iterator[bytes]:
    """The content from start to end, in pieces. Raises AccessDenied, InvalidData."""
    with read_errors(file), _open(file) as stream:
        allowed = ALWAYS_ALLOWED + MAX_RATIO * file.path.stat().st_size
        size = 0
        while piece := stream.read(PIECE):
            size += len(piece)
            if file.compression and size > allowed:
                raise InvalidData(
                    f"{file.name} decompresses to more than {MAX_RATIO} times its size, which no data set does. If the"
                    " content is right, decompress the file and use the result"
                )
            yield piece


@contextmanager
def seekable(file: DataFile) -> Iterator[Path]:
    """The path of a file that can be read at any position: the file itself, or a temporary decompressed copy. Raises
    NoSpace, InvalidData."""
    if file.compression is None:
        yield file.path
        return
    with tempfile.NamedTemporaryFile(prefix="rows-") as copy:
        for piece in decompressed(file):
            try:
                copy.write(piece)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise NoSpace(
                    f"{file.name} must be decompressed before it can be read, and {tempfile.gettempdir()} is full after"
                    f" {os.path.getsize(copy.name)} bytes. Use the decompressed file: its format compresses internally"
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
            # Not the reader of zstandard: it reads a truncated file without an error.
            import pyarrow  # slow to import, and few files need it

            return pyarrow.input_stream(str(file.path), compression="zstd")
        case None:
            return file.path.open("rb")
